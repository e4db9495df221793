"""What use cases want of the bulk engine: the neighbours of a vector within what the caller may read."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from memory_core.errors import BulkUnavailable, MemoryServiceError
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.vectors import Matrix
from memory_core.store.bulk_messages import Selection
from memory_server.engine.batch_cache import BatchCache
from memory_server.engine.bulk_client import BulkClient
from memory_server.index.loader import Ref
from memory_server.index.query import Filters
from memory_server.search import bulk_selection
from memory_server.search.services import SearchServices

log = logging.getLogger(__name__)
Neighbour = tuple[Ref, float]
Near = Callable[[int], Awaitable[list[Neighbour] | None]]
"""Gives so many of the nearest pieces with their cosines, nearest first; None where the index is to be asked."""
_SHARE_OF_WAIT = 0.5
"""Of a search's time; the rest is for Redis if the engine does not answer."""


def exactly_near(service: SearchServices, principal: Principal, filters: Filters, vector: Matrix, model: Model) -> Near:
    """Compare a vector of shape (dimension,) with all that the principal may read.

    The call raises BulkUnavailable where no sidecar does that in time.
    """
    selection = bulk_selection.readable(principal, filters)

    async def near(depth: int) -> list[Neighbour]:
        (found,) = await _ask(service, principal, selection, [vector], model, depth, exact=True)
        return found

    return near


async def near_together(
    service: SearchServices,
    cache: BatchCache | None,
    principal: Principal,
    filters: Filters,
    vector: Matrix | None,
    model: Model,
) -> Near | None:
    """In a batch, find neighbours for all of its searches at once; None where each search asks the index."""
    if cache is None or vector is None or not await _is_offered(service.bulk, cache, model):
        return None
    selection = bulk_selection.readable(principal, filters)
    clauses = selection.model_dump_json()

    async def near(depth: int) -> list[Neighbour] | None:
        async def send(vectors: Sequence[Matrix]) -> list[list[Neighbour]]:
            return await _ask(service, principal, selection, vectors, model, depth, exact=False)

        try:
            return await cache.gathered((clauses, depth, model), vector, send)
        except BulkUnavailable as error:
            log.info("a batch searches by the index: %s", error.message)
            return None

    return near


async def _is_offered(bulk: BulkClient, cache: BatchCache, model: Model) -> bool:
    async def ask() -> bool:
        try:
            return await bulk.is_offered(model)
        except MemoryServiceError:
            return False

    return await cache.once(("bulk is offered", model), ask)


async def _ask(
    service: SearchServices,
    principal: Principal,
    selection: Selection,
    vectors: Sequence[Matrix],
    model: Model,
    depth: int,
    *,
    exact: bool,
) -> list[list[Neighbour]]:
    wait = service.settings.search_timeout_ms / 1000 * _SHARE_OF_WAIT
    found = await service.bulk.nearest(
        principal.namespace, selection, np.stack(vectors), depth, exact=exact, wait=wait, model=model
    )
    return [[(Ref(memory_id, piece), cosine) for memory_id, piece, cosine in row] for row in found]
