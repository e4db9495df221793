"""Statistics on the memories that a caller may read, and on the sidecars."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.times import parse_time, to_iso
from memory_core.redis_client import Client
from memory_core.settings.groups import DAY
from memory_core.store import index, sidecar
from memory_core.store.sidecar import GIVE_KEY, BulkStatus, lacks_key
from memory_server.contract.arguments import StatsArguments
from memory_server.contract.stats import GpuAnswer, IndexHealth, Sidecar, StatsAnswer
from memory_server.contract.untrusted_text import counted
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import owners_of, resolve
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.index import queries as candidates
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters
from memory_server.operations.authority_records import unadopted
from memory_server.operations.stats.counts import Queries, caller_figures, count_queries, group
from memory_server.service import Service

_SAMPLE = 20
_LIBRARIES = ("faiss", "cupy", "torch", "onnxruntime")


@reads
async def memory_stats(service: Service, request: RequestContext, args: StatsArguments) -> StatsAnswer:
    """Count the memories that the caller may read, archived ones too; raises InvalidArgument for a bad `since`."""
    caller, start = request.caller, None if args.since is None else parse_time(args.since, "since")
    principal = await resolve(service.backend, request)
    owners = await owners_of(service.backend, principal, [args.agent_id]) if args.agent_id else ()
    model = await service.models.current(caller.namespace)
    queries = _queries(principal, ResolvedFilters(owners=owners, include_archive=True), model, start)
    figures, progress, failures = _figures(queries, [0] * len(queries)), 1.0, 0 if caller.sees_server else None
    if await service.namespaces.knows(caller.namespace):
        figures, progress, failures = await _count(service, caller, queries)
    return StatsAnswer(
        since=to_iso(start),
        index=IndexHealth(progress=progress, failures=failures, model=model.name, dimension=model.dimension),
        **await caller_figures(service, caller, progress),
        **figures,
    )


async def _count(service: Service, caller: Caller, queries: Queries) -> tuple[dict[str, Any], float, int | None]:
    """Count; also return the progress of the index, and its failures if the caller may see them."""
    prepared = await service.namespaces.get(caller.namespace)
    selected, keys, timeout = queries["", "total"], prepared.keys, service.settings.search_timeout_ms

    async def fetch(client: Client) -> dict[str, Any]:
        figures = _figures(queries, await candidates.count_all(client, keys, list(queries.values()), timeout))
        figures["by_agent"] = await candidates.count_by_writer(client, keys, selected, timeout)
        figures["bytes_estimate"] = int(figures["total"] * await _mean_bytes(client, keys, selected, timeout))
        return figures

    figures = await service.namespaces.search(caller.namespace, fetch)
    progress, failures = await service.namespaces.covered(prepared), None
    if caller.sees_server:
        failures = await service.backend.read(lambda client: index.failures(client, keys))
    return figures, progress, failures


def _figures(queries: Queries, counts: Sequence[int]) -> dict[str, Any]:
    """Arrange counts as the answer's fields; those that are not counts of queries are zero."""
    figures = group(queries, counts)
    figures["retention"]["never"] = figures["total"] - figures["retention"].pop("within_century")
    return figures | {"by_agent": {}, "bytes_estimate": 0}


def _queries(principal: Principal, base: ResolvedFilters, model: Model, start: float | None) -> Queries:
    now = redis_time.now()
    queries = count_queries(build.readable(principal, base, now), model, now)
    selection = queries["", "total"]
    queries |= {
        ("retention", "within_day"): build.expiring(selection, now + DAY),
        ("retention", "within_week"): build.expiring(selection, now + 7 * DAY),
        ("retention", "within_century"): build.expiring(selection, now + 100 * 366 * DAY),
        ("retention", "expired"): build.memories(build.expired(principal, base, now)),
        ("", "own"): build.owned(selection, principal.owners),
    }
    if start is not None:
        queries["", "created_since"] = build.created_since(selection, start)
    return queries


async def gpu_status(service: Service, caller: Caller) -> GpuAnswer:
    """Describe every living sidecar and what falls back to the CPU; raises StoreUnavailable.

    Only callers that see the whole server learn how busy a sidecar is, because that reveals other agents' work.
    """
    living = await service.backend.read(sidecar.living)
    depth, busy = None, caller.sees_server
    if busy:
        jobs = Keys(caller.namespace).jobs((await service.models.current(caller.namespace)).name)
        depth = int(await service.backend.read(lambda client: client.xlen(jobs)))
    keyless = [status for status in living if lacks_key(service.backend.transports, status)]
    reason = None if living else "no embedding sidecar is alive; searches use words only"
    if living and len(keyless) == len(living):
        reason = f"no sidecar holds this server's transport key: {GIVE_KEY}"
    fallbacks: list[str] = []
    for status in living:
        of_bulk = status.bulk.fallback if status.bulk and busy else ""
        fallbacks += [f"{status.host}: {text}" for text in (status.fallback, of_bulk) if text]
    return GpuAnswer(
        sidecars=[Sidecar.of(status, busy=busy) for status in living],
        queue_depth=depth,
        libraries={name: importlib.util.find_spec(name) is not None for name in _LIBRARIES},
        bulk="; ".join(_bulk(one.bulk, busy=busy) for one in living if one.bulk)
        or "none; exact comparisons are made by Redis",
        fallbacks=fallbacks
        + [f"{status.id}: does not hold this server's transport key; {GIVE_KEY}" for status in keyless],
        partial=bool(reason),
        reason=reason,
    )


def _bulk(status: BulkStatus, *, busy: bool) -> str:
    """Describe a bulk engine. Only with `busy`, include the work that it does for others."""
    if not busy:
        return f"offered, with {status.memory_total >> 20} MiB to fill"
    if not status.requests_total:
        return f"idle, with {status.memory_total >> 20} MiB to fill"
    gpus = counted(status.faiss_gpus, "GPU") if status.faiss_gpus else "no GPUs"
    faiss = f"FAISS {status.faiss} on {gpus}" if status.faiss else "no FAISS"
    vectors = f"{counted(status.vectors, 'vector')} of {counted(status.namespaces, 'namespace')}"
    return f"{status.arrays}, {faiss}: {vectors} in {status.memory_used >> 20} of {status.memory_total >> 20} MiB"


async def is_ready(service: Service) -> str | None:
    """Return why the default namespace cannot be stored to and searched; None if it can."""
    prepared = await service.namespaces.get(service.settings.namespace)
    if prepared.progress < 1:
        return f"the index is being built ({prepared.progress:.0%})"
    await service.backend.write("rm1_touch", [], counts=[], at="0")
    if reason := await unadopted(service.backend, service.settings.namespace):
        return reason
    model = await service.models.current(service.settings.namespace)
    living = await service.backend.read(sidecar.living)
    ready = [status for status in living if status.state == "ready" and status.model == model.name]
    if not ready:
        return "no embedding sidecar is ready"
    if all(lacks_key(service.backend.transports, status) for status in ready):
        return f"the sidecar {ready[0].id} lacks the transport key of this server: {GIVE_KEY}"
    return None


async def _mean_bytes(client: Client, keys: Keys, selection: build.Query, timeout_ms: int) -> float:
    refs, _ = await candidates.page(client, keys, selection, offset=0, limit=_SAMPLE, timeout_ms=timeout_ms)
    if not refs:
        return 0
    pipe = client.pipeline(transaction=False)
    for ref in refs:
        pipe.memory_usage(keys.memory(ref.memory_id), samples=0)
    sizes = [size or 0 for size in await pipe.execute()]
    return sum(sizes) / len(sizes)
