"""Sees to it that an agent stores no more than its quota, by counts of its own memories alone."""

from __future__ import annotations

from memory_core.records.keys import Keys
from memory_core.records.scope import Principal
from memory_core.store import redis_time
from memory_core.store.connection import Client
from memory_server.index import queries as candidates
from memory_server.index import query as build
from memory_server.index.lookup import run_search
from memory_server.memories.quotas import Room
from memory_server.service import Service


async def take_room(service: Service, principal: Principal, memories: int, pieces: int) -> None:
    """Let an agent store so much more.

    Raises:
        QuotaExceeded: it has no room for that.
        StoreUnavailable: Redis does not answer.
    """
    keys = Keys(principal.namespace)

    async def fetch(client: Client) -> list[int]:
        own = build.kept_by(principal.owners, redis_time.now())
        queries = [build.memories(own), own]
        return await candidates.count_all(client, keys, queries, service.settings.search_timeout_ms)

    async def count() -> Room:
        return Room(*await run_search(service, principal.namespace, fetch))

    await service.quotas.take((principal.namespace, principal.owners), Room(memories, pieces), count)
