"""Figures on the memories that a caller may read, and on the sidecars."""

from __future__ import annotations

import importlib.util
from typing import Any

from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.memory import MemoryType, Priority, Visibility
from memory_core.records.scope import Principal
from memory_core.records.times import parse_time
from memory_core.redis_client import Client
from memory_core.settings.groups import DAY
from memory_core.store import index, sidecar
from memory_core.store.sidecar import GIVE_KEY, BulkStatus, lacks_key
from memory_server.contract.answer import partial_reason
from memory_server.contract.arguments import StatsArguments
from memory_server.contract.stats import CacheFigures, GpuAnswer, IndexHealth, Sidecar, StatsAnswer
from memory_server.engine.backend import Backend
from memory_server.engine.inflight_reads import reads
from memory_server.engine.namespaces import Prepared
from memory_server.engine.principals import owners_of, resolve
from memory_server.engine.request import Caller, RequestContext
from memory_server.engine.vector_cache import Hits
from memory_server.index import queries as candidates
from memory_server.index import query as build
from memory_server.index.filters import ResolvedFilters
from memory_server.operations.stats.team_stats import agent_figures, task_figures
from memory_server.service import Service

_SAMPLE = 20
_LIBRARIES = ("faiss", "cupy", "torch", "onnxruntime")


@reads
async def memory_stats(service: Service, request: RequestContext, args: StatsArguments) -> StatsAnswer:
    """Count what the caller may read, or of it what one agent wrote. The archive counts too.

    Raises:
        InvalidArgument: `since` is not a time.
    """
    start = None if args.since is None else parse_time(args.since, "since")
    prepared = await service.namespaces.get(request.caller.namespace)
    principal = await resolve(service.backend, request)
    owners = await owners_of(service.backend, principal, [args.agent_id]) if args.agent_id else ()
    base = ResolvedFilters(owners=owners, include_archive=True)

    async def fetch(client: Client) -> dict[str, Any]:
        return await _count(service, client, prepared, principal, base, start)

    figures = await service.namespaces.search(request.caller.namespace, fetch)
    progress = await service.namespaces.covered(prepared)
    reason = partial_reason(progress)
    model, measured = (
        await service.models.current(request.caller.namespace),
        None if request.caller.sees_server else request.caller,
    )
    return StatsAnswer(
        namespace=request.caller.namespace,
        agent=request.caller.agent,
        index=IndexHealth(
            progress=progress,
            failures=await _failures(service.backend, prepared.keys) if request.caller.sees_server else None,
            model=model.name,
            dimension=model.dimension,
        ),
        cache=_cache_figures(service.embeddings.cache.hits(request.caller)),
        search_latency_ms=service.search_latency.percentiles(measured),
        embedding_latency_ms=service.embedding_latency.percentiles(measured),
        tasks=await task_figures(service.backend, request.caller),
        agents=await agent_figures(service.backend, request.caller),
        partial=bool(reason),
        reason=reason,
        **figures,
    )


async def gpu_status(service: Service, caller: Caller) -> GpuAnswer:
    """Describe every living sidecar and what falls back to the CPU; how busy it is shows what all agents do.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    living = await service.backend.read(sidecar.living)
    depth = None
    if caller.sees_server:
        names, model = Keys(caller.namespace), await service.models.current(caller.namespace)
        depth = int(await service.backend.read(lambda client: client.xlen(names.jobs(model.name))))
    keyless = [status for status in living if lacks_key(service.backend.transports, status)]
    reason = None if living else "no embedding sidecar is alive; searches use words only"
    if living and len(keyless) == len(living):
        reason = f"no sidecar holds this server's transport key: {GIVE_KEY}"
    return GpuAnswer(
        sidecars=[Sidecar.of(status, busy=caller.sees_server) for status in living],
        queue_depth=depth,
        libraries={name: importlib.util.find_spec(name) is not None for name in _LIBRARIES},
        bulk="; ".join(_bulk(one.bulk, busy=caller.sees_server) for one in living if one.bulk)
        or "none; exact comparisons are made by Redis",
        fallbacks=[
            *(
                f"{status.host}: {text}"
                for status in living
                for text in (status.fallback, status.bulk.fallback if status.bulk and caller.sees_server else "")
                if text
            ),
            *(f"{status.id}: does not hold this server's transport key; {GIVE_KEY}" for status in keyless),
        ],
        partial=bool(reason),
        reason=reason,
    )


def _bulk(status: BulkStatus, *, busy: bool) -> str:
    """Describe an engine; what others have it do shows only where `busy`."""
    if not busy:
        return f"offered, with {status.memory_total >> 20} MiB to fill"
    if not status.requests_total:
        return f"idle, with {status.memory_total >> 20} MiB to fill"
    faiss = f"FAISS {status.faiss} on {status.faiss_gpus or 'no'} GPUs" if status.faiss else "no FAISS"
    return (
        f"{status.arrays}, {faiss}: {status.vectors} vectors of {status.namespaces} namespaces in "
        f"{status.memory_used >> 20} of {status.memory_total >> 20} MiB"
    )


async def is_ready(service: Service) -> str | None:
    """Say what stands in the way of a store and a search in the default namespace; None when nothing does."""
    prepared = await service.namespaces.get(service.settings.namespace)
    if prepared.progress < 1:
        return f"the index is being built ({prepared.progress:.0%})"
    await service.backend.write("rm1_touch", [], counts=[], at="0")
    model = await service.models.current(service.settings.namespace)
    living = await service.backend.read(sidecar.living)
    if not any(status.state == "ready" and status.model == model.name for status in living):
        return "no embedding sidecar is ready"
    return None


async def _count(
    service: Service,
    client: Client,
    prepared: Prepared,
    principal: Principal,
    base: ResolvedFilters,
    start: float | None,
) -> dict[str, Any]:
    """Run all counts in one round trip."""
    now, timeout = redis_time.now(), service.settings.search_timeout_ms
    model = await service.models.current(principal.namespace)
    pieces = build.readable(principal, base, now)
    selection = build.memories(pieces)
    queries: dict[tuple[str, str], build.Query] = {
        ("", "total"): selection,
        ("", "pieces"): pieces,
        ("retention", "within_day"): build.expiring(selection, now + DAY),
        ("retention", "within_week"): build.expiring(selection, now + 7 * DAY),
        ("retention", "within_century"): build.expiring(selection, now + 100 * 366 * DAY),
        ("retention", "expired"): build.memories(build.expired(principal, base, now)),
        ("", "vector_backlog"): build.without_vector(pieces, model),
        ("", "own"): build.owned(selection, principal.owners),
        ("", "created_last_hour"): build.created_since(selection, now - 3600),
        ("", "created_last_day"): build.created_since(selection, now - DAY),
    }
    if start is not None:
        queries["", "created_since"] = build.created_since(selection, start)
    for field, values in (("type", MemoryType), ("priority", Priority), ("visibility", Visibility)):
        for value in values:
            queries[f"by_{field}", value] = build.having(selection, field, value)
    counts = await candidates.count_all(client, prepared.keys, list(queries.values()), timeout)
    figures: dict[str, Any] = {"by_type": {}, "by_priority": {}, "by_visibility": {}, "retention": {}}
    for (group, name), number in zip(queries, counts, strict=True):
        if not group:
            figures[name] = number
        elif number or group == "retention":
            figures[group][name] = number
    figures["retention"]["never"] = figures["total"] - figures["retention"].pop("within_century")
    figures["by_agent"] = await candidates.count_by_writer(client, prepared.keys, selection, timeout)
    figures["bytes_estimate"] = await _bytes(client, prepared.keys, selection, figures["total"], timeout)
    return figures


def _cache_figures(hits: Hits) -> CacheFigures:
    asked = hits.process + hits.redis + hits.missed
    return CacheFigures(
        process_hits=hits.process,
        redis_hits=hits.redis,
        misses=hits.missed,
        hit_rate=round((hits.process + hits.redis) / asked, 4) if asked else None,
    )


async def _failures(backend: Backend, keys: Keys) -> int:
    return await backend.read(lambda client: index.failures(client, keys))


async def _bytes(client: Client, keys: Keys, selection: build.Query, total: int, timeout_ms: int) -> int:
    """Extrapolate the Redis memory of a selection from its newest few."""
    refs, _ = await candidates.page(client, keys, selection, offset=0, limit=_SAMPLE, timeout_ms=timeout_ms)
    if not refs:
        return 0
    pipe = client.pipeline(transaction=False)
    for ref in refs:
        pipe.memory_usage(keys.memory(ref.memory_id), samples=0)
    sizes = [size or 0 for size in await pipe.execute()]
    return total * sum(sizes) // len(sizes)
