"""Figures for the dashboard: few and cheap queries, and no more often than Redis can spare the time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from cachetools import LRUCache

from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.memory import MemoryType, Priority, Visibility
from memory_core.records.times import to_iso
from memory_core.redis_client import Client
from memory_core.settings.groups import DAY
from memory_server.contract.answer import partial_reason
from memory_server.contract.dashboard import CensusAnswer, Day
from memory_server.contract.stats import CacheFigures
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve
from memory_server.engine.request import RequestContext
from memory_server.engine.vector_cache import Hits
from memory_server.index import queries as candidates
from memory_server.index import query as build
from memory_server.index.filters import ResolvedFilters
from memory_server.index.query import Query
from memory_server.operations.stats.team_stats import agent_figures, task_figures
from memory_server.service import Service

GROWTH_DAYS = 30
_FRESH_SECONDS = 2.0
_SHARE = 0.05
"""Of its time at most that Redis spends on counting for one who looks on."""
_REMEMBERED = 256
_EMPTY: dict[str, Any] = {
    "index_progress": 1.0, "total": 0, "pieces": 0, "vector_backlog": 0, "created_last_hour": 0, "created_last_day": 0,
    "by_type": {}, "by_priority": {}, "by_visibility": {}, "by_agent": {}, "growth": [],
}  # fmt: skip


class Census:
    """Counts, remembered for a while: the longer, the longer it took to count."""

    def __init__(self) -> None:
        self._known: LRUCache[Any, tuple[float, float, dict[str, Any]]] = LRUCache(_REMEMBERED)
        self._counting: LRUCache[str, asyncio.Lock] = LRUCache(_REMEMBERED)

    async def take(self, service: Service, request: RequestContext) -> CensusAnswer:
        """Give the figures on what the caller may read, or on the whole namespace to an admin.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        at, figures = await self._figures(service, request)
        reason = partial_reason(figures["index_progress"])
        measured = None if request.caller.sees_server else request.caller
        return CensusAnswer(
            namespace=request.caller.namespace,
            agent=request.caller.agent,
            whole=request.caller.admin,
            model=(await service.models.current(request.caller.namespace)).name,
            cache=_cache(service.embeddings.cache.hits(request.caller)),
            search_latency_ms=service.search_latency.percentiles(measured),
            embedding_latency_ms=service.embedding_latency.percentiles(measured),
            tasks=await task_figures(service.backend, request.caller),
            agents=await agent_figures(service.backend, request.caller),
            counted_at=to_iso(at) or "",
            partial=bool(reason),
            reason=reason,
            **figures,
        )

    async def _figures(self, service: Service, request: RequestContext) -> tuple[float, dict[str, Any]]:
        principal = None if request.caller.admin else await resolve(service.backend, request)
        key = (request.caller.namespace, principal)
        async with self._counting.setdefault(request.caller.namespace, asyncio.Lock()):
            at, until, figures = self._known.get(key, (0.0, 0.0, _EMPTY))
            if time.monotonic() < until:
                return at, figures
            at, began = redis_time.now(), time.monotonic()
            if await service.namespaces.knows(request.caller.namespace):
                selected = build.living(at) if principal is None else build.readable(principal, _ALL, at)
                figures = await _count(service, request, selected, at)
            now = time.monotonic()
            self._known[key] = (at, now + max(_FRESH_SECONDS, (now - began) / _SHARE), figures)
            return at, figures


_ALL = ResolvedFilters(include_archive=True)


@reads
async def _count(service: Service, request: RequestContext, pieces: Query, now: float) -> dict[str, Any]:
    prepared, timeout = await service.namespaces.get(request.caller.namespace), service.settings.search_timeout_ms
    model, selected = await service.models.current(request.caller.namespace), build.memories(pieces)
    queries: dict[tuple[str, str], Query] = {
        ("", "total"): selected,
        ("", "pieces"): pieces,
        ("", "vector_backlog"): build.without_vector(pieces, model),
        ("", "created_last_hour"): build.created_since(selected, now - 3600),
        ("", "created_last_day"): build.created_since(selected, now - DAY),
    }
    for field, values in (("type", MemoryType), ("priority", Priority), ("visibility", Visibility)):
        queries |= {(f"by_{field}", value): build.having(selected, field, value) for value in values}
    today = int(now // DAY)
    recent = build.created_since(selected, float((today - GROWTH_DAYS + 1) * DAY))

    async def fetch(client: Client) -> tuple[list[int], dict[str, int], dict[int, int]]:
        keys = Keys(prepared.keys.namespace)
        return (
            await candidates.count_all(client, keys, list(queries.values()), timeout),
            await candidates.count_by_writer(client, keys, selected, timeout),
            await candidates.count_by_day(client, keys, recent, timeout),
        )

    counts, by_agent, by_day = await service.namespaces.search(request.caller.namespace, fetch)
    progress = await service.namespaces.covered(prepared)
    figures: dict[str, Any] = {
        "index_progress": progress,
        "by_type": {},
        "by_priority": {},
        "by_visibility": {},
        "by_agent": by_agent,
    }
    for (group, name), number in zip(queries, counts, strict=True):
        if not group:
            figures[name] = number
        elif number:
            figures[group][name] = number
    days = range(today - GROWTH_DAYS + 1, today + 1)
    figures["growth"] = [Day(day=(to_iso(day * DAY) or "")[:10], stored=by_day.get(day, 0)) for day in days]
    return figures


def _cache(hits: Hits) -> CacheFigures:
    found, asked = hits.process + hits.redis, hits.process + hits.redis + hits.missed
    rate = round(found / asked, 4) if asked else None
    return CacheFigures(process_hits=hits.process, redis_hits=hits.redis, misses=hits.missed, hit_rate=rate)
