"""Finds neighbours of vectors in the bulk engine, within what the caller may read."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from memory_core.errors import BulkUnavailable, MemoryServiceError
from memory_core.records.memory import Priority
from memory_core.records.model import Model
from memory_core.records.scope import Principal, owner_token
from memory_core.records.vectors import Matrix
from memory_core.store.bulk_messages import Clause, Selection
from memory_server.engine.batch_cache import BatchCache
from memory_server.engine.sidecars.bulk_client import BulkClient
from memory_server.index.filters import ResolvedFilters
from memory_server.index.loader import Ref
from memory_server.search.services import SearchServices

log = logging.getLogger(__name__)
Neighbour = tuple[Ref, float]
NeighbourSource = Callable[[int], Awaitable[list[Neighbour] | None]]
"""Returns the nearest chunks, as many as asked for, with their cosines, nearest first; None to use the index."""
_SHARE_OF_WAIT = 0.5  # of a search's time; the rest is for Redis if the engine does not answer


def readable_selection(principal: Principal, filters: ResolvedFilters) -> Selection:
    """Select what `query.readable` selects; the engine itself leaves out what has expired."""
    every: list[Clause] = [("scope", principal.tokens), *filters.chosen]
    none: list[Clause] = [("scope", sorted(principal.hidden))] if principal.hidden else []
    if not filters.include_archive and Priority.ARCHIVE not in filters.priorities:
        none.append(("priority", (Priority.ARCHIVE,)))
    mistrusted = list(principal.mistrusted.items())
    return Selection(every=every, none=none, mistrusted=mistrusted, since=filters.since, until=filters.until)


def own_selection(principal: Principal) -> Selection:
    own = [owner_token(owner) for owner in principal.owners]
    return Selection(every=[("scope", own)], mistrusted=list(principal.mistrusted.items()))


def exact_neighbours(
    service: SearchServices, principal: Principal, filters: ResolvedFilters, vector: Matrix, model: Model
) -> NeighbourSource:
    """Compare a vector, shape (dimension,), with all that the principal may read. The source raises BulkUnavailable."""
    selection = readable_selection(principal, filters)

    async def source(depth: int) -> list[Neighbour]:
        (found,) = await _nearest(service, principal, selection, [vector], model, depth, exact=True)
        return found

    return source


async def batch_neighbours(
    service: SearchServices,
    cache: BatchCache | None,
    principal: Principal,
    filters: ResolvedFilters,
    vector: Matrix | None,
    model: Model,
) -> NeighbourSource | None:
    """In a batch, find the neighbours of all its searches at once; None if each search uses the index."""
    if cache is None or vector is None or not await _is_offered(service.bulk, cache, model):
        return None
    selection = readable_selection(principal, filters)
    clauses = selection.model_dump_json()

    async def source(depth: int) -> list[Neighbour] | None:
        async def send(vectors: Sequence[Matrix]) -> list[list[Neighbour]]:
            return await _nearest(service, principal, selection, vectors, model, depth, exact=False)

        try:
            return await cache.gathered((clauses, depth, model), vector, send)
        except BulkUnavailable as error:
            log.info("a batch uses the index: %s", error.message)
            return None

    return source


async def _is_offered(bulk: BulkClient, cache: BatchCache, model: Model) -> bool:
    async def ask() -> bool:
        try:
            return await bulk.is_offered(model)
        except MemoryServiceError:
            return False

    return await cache.once(("bulk is offered", model), ask)


async def _nearest(
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
    return [[(Ref(memory_id, chunk), cosine) for memory_id, chunk, cosine in row] for row in found]
