"""Tells Prometheus how a sidecar fares, on a port of its own; nothing of it is loaded unless a port is named.

The page is written in a thread and reads numbers that the event loop keeps anyway.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from memory_core.errors import InvalidArgument
from memory_core.metric_families import Families

if TYPE_CHECKING:
    from memory_embedder.sidecar import Sidecar

PREFIX = "memory_embedder_"
_new = Families(PREFIX)


@contextmanager
def serving_metrics(sidecar: Sidecar, host: str, port: int) -> Generator[int]:
    """Serve `/metrics` until left; give the port.

    Raises:
        InvalidArgument: the address is taken, or not of this machine.
    """
    registry = CollectorRegistry()
    registry.register(_Figures(sidecar))
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise InvalidArgument(
            f"cannot tell metrics on {host}:{port}: {error.strerror or error}", hint="choose another --metrics-port"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Figures(Collector):
    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        sidecar, status = self._sidecar, self._sidecar.status()
        throughput, inference, asks, jobs = sidecar.throughput, sidecar.inference, sidecar.asks, sidecar.jobs
        what = {"model": os.path.basename(status.model), "backend": status.backend, "device": status.device}
        info = what | {"provider": status.provider.partition(" (")[0], "version": version("redis-memory-gpu")}
        yield InfoMetricFamily(PREFIX.rstrip("_"), "What computes the vectors, and release of the sidecar.", info)
        yield _new.gauge("ready", "Whether it serves.", status.state == "ready")
        yield _new.gauge("fallback", "Whether another device than the wanted one computes.", bool(sidecar.fallback))
        yield _new.gauge("refused_namespaces", "Namespaces left to sidecars of another model.", sidecar.refused)
        yield _new.counter("texts", "Texts embedded.", status.texts_total)
        yield _new.gauge("texts_per_second", "Texts a second over the last ten seconds.", status.texts_per_second)
        yield _new.histogram("batch_texts", "Texts of one inference.", throughput.batch_texts)
        yield _new.histogram("inference_seconds", "How long one inference took.", throughput.inference_seconds)
        yield _new.gauge("batch_tokens", "Padded tokens that one inference may have at present.", status.batch_tokens)
        yield _new.counter(
            "halvings", "Batches that failed, for want of memory say, and were halved.", inference.halvings
        )
        yield _new.counter("failed_texts", "Texts that failed by themselves.", inference.failures)
        yield _new.counters("asks", "Asks by what came of them.", "outcome", asks.outcomes)
        yield _new.counters("jobs", "Jobs by what came of them.", "verdict", jobs.verdicts)
        yield _new.gauge("queue", "Jobs in the streams of all namespaces, as last seen.", status.queue_depth)
        yield _new.gauge("held_jobs", "Jobs taken and not yet committed.", len(jobs.held_jobs))
        yield _new.gauge("waiting_asks", "Asks taken and not yet answered.", len(asks))
        gpu = sidecar.read_gpu()
        if gpu is not None:
            yield from _optional("gpu_utilisation", "Share of the time that the GPU computed.", gpu.utilisation)
            yield from _optional("gpu_memory_used_bytes", "Memory of the GPU in use, by all.", gpu.memory_used)
            yield from _optional("gpu_memory_bytes", "Memory of the GPU.", gpu.memory_total)
            yield from _optional("gpu_temperature_celsius", "Temperature of the GPU.", gpu.temperature)
            yield from _optional("gpu_power_watts", "Power that the GPU draws.", gpu.power)


def _optional(name: str, said: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield _new.gauge(name, said, value)
