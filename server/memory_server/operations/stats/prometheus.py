"""Renders the counters of a server for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from memory_server.engine.counters import FAMILIES, Counters
from memory_server.operations.stats.redis_stats import Stock
from memory_server.service import Service

PREFIX = FAMILIES.prefix
_process = CollectorRegistry()
ProcessCollector(registry=_process)


def exposition(counters: Counters, service: Service | None, stock: Stock, accept: str) -> tuple[bytes, str]:
    """Return the body and its content type. `service` is None until it has started."""
    registry = CollectorRegistry()
    registry.register(_Collected([*_of_process(counters, service), *_of_stock(stock), *_process.collect()]))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collected(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


def _of_process(counters: Counters, service: Service | None) -> Iterator[Metric]:
    yield InfoMetricFamily(PREFIX.rstrip("_"), "Release of the server.", {"version": version("redis-memory-gpu")})
    by = ("operation", "outcome")
    calls = CounterMetricFamily(PREFIX + "calls", "Operations, also of batches, by name and outcome.", labels=by)
    for labels, number in counters.calls.items():
        calls.add_metric(labels, number)
    yield calls
    yield from counters.call_seconds.collect()
    yield FAMILIES.counter("turned_away", "Calls refused under overload.", counters.turned_away)
    yield FAMILIES.counter("bad_tokens", "Requests with an invalid token.", counters.bad_tokens)
    yield FAMILIES.counter("damaged_entries", "Damaged entries removed from Redis.", counters.damaged)
    yield from counters.search_part_seconds.collect()
    sweeps = "Rounds of the sweeper; `elsewhere`: by another server."
    yield FAMILIES.counters("sweeps", sweeps, "outcome", counters.sweeps)
    if service is None:
        return
    yield from service.search_latency.histogram.collect()
    yield from service.embedding_latency.histogram.collect()
    hits, recorder = service.embeddings.cache.total, service.auditor.recorder
    found = {"process": hits.process, "redis": hits.redis, "nowhere": hits.missed}
    yield FAMILIES.counters("cached_vectors", "Texts by where their vector was found.", "found", found)
    entries = {"written": recorder.written_total, "lost": recorder.lost_total}
    yield FAMILIES.counters("audit_entries", "Entries of reads and refusals.", "outcome", entries)
    yield FAMILIES.gauge("audit_entries_held", "Entries that wait to be written.", recorder.held)
    yield FAMILIES.counter("audit_write_failures", "Times that entries could not be written.", service.auditor.failures)
    flaws = service.backend.integrity.failures
    yield FAMILIES.counter("integrity_flaws", "Memories that failed their integrity check, each once.", flaws)


def _of_stock(stock: Stock) -> Iterator[Metric]:
    """Yield the metrics of Redis, which are the same on all its servers."""
    yield FAMILIES.gauge("redis_up", "Whether Redis answered.", stock.redis_up)
    if not stock.redis_up or stock.round_trip_seconds is None:
        return
    info = stock.redis
    yield FAMILIES.gauge("redis_round_trip_seconds", "How long a PING took.", stock.round_trip_seconds)
    yield FAMILIES.gauge("redis_used_bytes", "Memory that Redis uses.", info.get("used_memory", 0))
    yield FAMILIES.gauge("redis_limit_bytes", "Memory that Redis may use; 0 is all.", info.get("maxmemory", 0))
    yield FAMILIES.gauge("redis_clients", "Connections to Redis.", info.get("connected_clients", 0))
    yield FAMILIES.gauge("redis_append_only", "Whether writes go to the append-only file.", info.get("aof_enabled", 0))
    written = info.get("aof_last_write_status", "ok") == "ok"
    yield FAMILIES.gauge("redis_append_only_ok", "Whether its last write went well.", written)
    yield FAMILIES.counter("redis_evicted_keys", "Keys that Redis evicted to free memory.", info.get("evicted_keys", 0))
    yield FAMILIES.counter("redis_commands", "Commands that Redis ran.", info.get("total_commands_processed", 0))
    yield FAMILIES.gauge("namespaces", "Namespaces.", stock.namespaces)
    yield FAMILIES.gauge("namespaces_uncounted", "Namespaces left out of the sums below: too many.", stock.uncounted)
    yield FAMILIES.gauge("vector_backlog", "Texts that wait for their vector.", stock.backlog)
    yield FAMILIES.gauge("dead_jobs", "Recent texts that could not be embedded.", stock.dead_jobs)
    yield FAMILIES.gauges("tasks", "Open tasks; no agent holds the `queued` ones.", "state", stock.tasks)
    yield FAMILIES.counters("tasks_ended", "Tasks that ended.", "state", stock.ended)
    yield FAMILIES.gauge("dead_tasks", "Failed tasks that were not requeued.", stock.dead_tasks)
    yield FAMILIES.gauges("sidecars", "Living sidecars.", "state", stock.sidecars)
