"""Queries and figures that the tool `memory_stats` and the dashboard share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memory_core.records.memory import MemoryType, Priority, Visibility
from memory_core.records.model import Model
from memory_core.settings.groups import DAY
from memory_server.contract.answer import partial_reason
from memory_server.contract.stats import CacheFigures
from memory_server.engine.request_context import Caller
from memory_server.index import query_builder as build
from memory_server.index.query_builder import Query
from memory_server.operations.stats.team_stats import agent_figures, task_figures
from memory_server.service import Service

Queries = dict[tuple[str, str], Query]
"""Queries to count, by group and name; figures without a group have an empty one."""


def count_queries(pieces: Query, model: Model, now: float) -> Queries:
    """Make the queries for totals, backlog and recent memories, and by type, priority and visibility."""
    memories = build.memories(pieces)
    queries: Queries = {
        ("", "total"): memories,
        ("", "pieces"): pieces,
        ("", "vector_backlog"): build.without_vector(pieces, model),
        ("", "vectors_failed"): build.failed(pieces, model),
        ("", "created_last_hour"): build.created_since(memories, now - 3600),
        ("", "created_last_day"): build.created_since(memories, now - DAY),
    }
    for field, values in (("type", MemoryType), ("priority", Priority), ("visibility", Visibility)):
        queries |= {(f"by_{field}", value): build.having(memories, field, value) for value in values}
    return queries


def group(queries: Mapping[tuple[str, str], Query], counts: Sequence[int]) -> dict[str, Any]:
    """Arrange counts by group and name. Omits zeros, except of retention."""
    figures: dict[str, Any] = {"by_type": {}, "by_priority": {}, "by_visibility": {}, "retention": {}}
    for (name_of_group, name), number in zip(queries, counts, strict=True):
        if not name_of_group:
            figures[name] = number
        elif number or name_of_group == "retention":
            figures[name_of_group][name] = number
    return figures


async def caller_figures(service: Service, caller: Caller, progress: float) -> dict[str, Any]:
    """Return the fields of an answer that do not depend on its counts; `progress` is that of the index, 0 to 1."""
    measured, hits = None if caller.sees_server else caller, service.embeddings.cache.hits(caller)
    found, asked = hits.process + hits.redis, hits.process + hits.redis + hits.missed
    rate, reason = round(found / asked, 4) if asked else None, partial_reason(progress)
    return {
        "namespace": caller.namespace,
        "agent": caller.agent,
        "cache": CacheFigures(process_hits=hits.process, redis_hits=hits.redis, misses=hits.missed, hit_rate=rate),
        "search_latency_ms": service.search_latency.percentiles(measured),
        "embedding_latency_ms": service.embedding_latency.percentiles(measured),
        "tasks": await task_figures(service.backend, caller),
        "agents": await agent_figures(service.backend, caller),
        "partial": bool(reason),
        "reason": reason,
    }
