"""What use cases want of the bulk engine: the neighbours of a vector, exactly, within what the caller may read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from memory_core.scope import Principal
from memory_core.vectors import Matrix
from memory_server.search import mirrored
from memory_server.search.loading import Ref
from memory_server.search.query import Filters
from memory_server.service import Service

Near = Callable[[int], Awaitable[list[Ref]]]
"""Gives so many of the nearest pieces."""
_SHARE_OF_WAIT = 0.5
"""Of a search's time; the rest is for comparing in Redis if the engine does not answer."""


def exactly_near(service: Service, principal: Principal, filters: Filters, vector: Matrix) -> Near:
    """Compare a vector of shape (dimension,) with all that the principal may read.

    The call raises BulkUnavailable where no sidecar does that in time.
    """
    selection = mirrored.readable(principal, filters)
    wait = service.settings.search_timeout_ms / 1000 * _SHARE_OF_WAIT

    async def near(depth: int) -> list[Ref]:
        (found,) = await service.bulk.nearest(
            principal.namespace, selection, vector.reshape(1, -1), depth, exact=True, wait=wait
        )
        return [Ref(*piece) for piece in found]

    return near
