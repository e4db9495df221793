"""Statistics for the dashboard: cheap queries, at a rate that leaves Redis time for other work."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from cachetools import LRUCache

from memory_core.records import redis_time
from memory_core.records.times import to_iso
from memory_core.redis_client import Client
from memory_core.settings.groups import DAY
from memory_server.contract.dashboard import CensusAnswer, Day
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import RequestContext
from memory_server.index import queries as candidates
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters
from memory_server.index.query_builder import Query
from memory_server.operations.stats.counts import caller_figures, count_queries, group
from memory_server.service import Service

GROWTH_DAYS = 30
_FRESH_SECONDS = 2.0
_SHARE = 0.05
"""The share of Redis's time that counting for one viewer may take."""
_REMEMBERED = 256
_EMPTY: dict[str, Any] = {
    "index_progress": 1.0, "total": 0, "pieces": 0, "vector_backlog": 0, "vectors_failed": 0, "created_last_hour": 0,
    "created_last_day": 0, "by_type": {}, "by_priority": {}, "by_visibility": {}, "by_agent": {}, "growth": [],
}  # fmt: skip


class Census:
    """Cached counts. Counts that took longer are cached longer."""

    def __init__(self) -> None:
        self._known: LRUCache[Any, tuple[float, float, dict[str, Any]]] = LRUCache(_REMEMBERED)
        self._counting: LRUCache[str, asyncio.Lock] = LRUCache(_REMEMBERED)

    async def take(self, service: Service, request: RequestContext) -> CensusAnswer:
        """Count what the caller may read, or for an overseer the whole namespace; raises StoreUnavailable."""
        at, figures = await self._figures(service, request)
        return CensusAnswer(
            whole=request.caller.oversees,
            model=(await service.models.current(request.caller.namespace)).name,
            counted_at=to_iso(at) or "",
            **await caller_figures(service, request.caller, figures["index_progress"]),
            **figures,
        )

    async def _figures(self, service: Service, request: RequestContext) -> tuple[float, dict[str, Any]]:
        principal = None if request.caller.oversees else await resolve(service.backend, request)
        key = (request.caller.namespace, principal)
        async with self._counting.setdefault(request.caller.namespace, asyncio.Lock()):
            at, until, figures = self._known.get(key, (0.0, 0.0, _EMPTY))
            if time.monotonic() < until:
                return at, figures
            at, began = redis_time.now(), time.monotonic()
            if await service.namespaces.knows(request.caller.namespace):
                selected = (
                    build.living(at)
                    if principal is None
                    else build.readable(principal, ResolvedFilters(include_archive=True), at)
                )
                figures = await _count(service, request, selected, at)
            now = time.monotonic()
            self._known[key] = (at, now + max(_FRESH_SECONDS, (now - began) / _SHARE), figures)
            return at, figures


@reads
async def _count(service: Service, request: RequestContext, pieces: Query, now: float) -> dict[str, Any]:
    caller, timeout = request.caller, service.settings.search_timeout_ms
    prepared = await service.namespaces.get(caller.namespace)
    queries = count_queries(pieces, await service.models.current(caller.namespace), now)
    selected, keys, today = queries["", "total"], prepared.keys, int(now // DAY)
    days = range(today - GROWTH_DAYS + 1, today + 1)
    recent = build.created_since(selected, float(days[0] * DAY))

    async def fetch(client: Client) -> dict[str, Any]:
        figures = group(queries, await candidates.count_all(client, keys, list(queries.values()), timeout))
        del figures["retention"]
        figures["by_agent"] = await candidates.count_by_writer(client, keys, selected, timeout)
        by_day = await candidates.count_by_day(client, keys, recent, timeout)
        figures["growth"] = [Day(day=(to_iso(day * DAY) or "")[:10], stored=by_day.get(day, 0)) for day in days]
        return figures

    figures = await service.namespaces.search(caller.namespace, fetch)
    return figures | {"index_progress": await service.namespaces.covered(prepared)}
