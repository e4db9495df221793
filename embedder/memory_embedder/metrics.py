"""Serves the metrics of a sidecar to Prometheus. Imported only if a port is configured.

A thread writes the page from numbers that the event loop keeps anyway.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from memory_core.errors import InvalidArgument
from memory_core.observe.metric_families import Families

if TYPE_CHECKING:
    from memory_embedder.sidecar import Sidecar

PREFIX = "memory_embedder_"
CLIENTS, CLIENT_SECONDS = 16, 5.0
"""How many clients are served at a time, and for how long each."""
_new = Families(PREFIX)


@contextmanager
def serving_metrics(sidecar: Sidecar, host: str, port: int) -> Generator[int]:
    """Serve `/metrics` until the context ends. Yields the port.

    Raises:
        InvalidArgument: the address is in use or does not belong to this machine.
    """
    registry = CollectorRegistry()
    registry.register(_SidecarCollector(sidecar))
    ProcessCollector(registry=registry)
    with serving_registry(registry, host, port) as bound:
        yield bound


@contextmanager
def serving_registry(registry: CollectorRegistry, host: str, port: int) -> Generator[int]:
    """Serve the metrics of a registry. Yields the port; raises InvalidArgument as `serving_metrics` does."""
    try:
        server = make_server(host, port, make_wsgi_app(registry), _BoundedServer, _SilentHandler)
    except OSError as error:
        raise InvalidArgument(
            f"cannot serve metrics on {host}:{port}: {error.strerror or error}", hint="choose another --metrics-port"
        ) from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class _BoundedServer(ThreadingWSGIServer):
    """Serves few clients at a time, and closes their connections after a time; further ones are closed at once."""

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        self._places = threading.BoundedSemaphore(CLIENTS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(CLIENT_SECONDS, _end, [request])
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that leave early."""


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _SidecarCollector(Collector):
    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def collect(self) -> Iterator[Metric]:
        """Read all metrics."""
        sidecar, status = self._sidecar, self._sidecar.status()
        throughput, inference, asks, jobs = sidecar.throughput, sidecar.inference, sidecar.asks, sidecar.jobs
        engine = {"model": os.path.basename(status.model), "backend": status.backend, "device": status.device}
        info = engine | {"provider": status.provider.partition(" (")[0], "version": version("redis-memory-gpu")}
        yield InfoMetricFamily(PREFIX.rstrip("_"), "The engine and the version of the sidecar.", info)
        yield _new.gauge("ready", "Whether the sidecar is ready.", status.state == "ready")
        yield _new.gauge(
            "fallback", "Whether the sidecar uses another device than the requested one.", bool(sidecar.fallback)
        )
        yield _new.gauge("refused_namespaces", "Namespaces left to sidecars of another model.", sidecar.refused)
        yield _new.counter("texts", "Texts embedded.", status.texts_total)
        yield _new.gauge("texts_per_second", "Texts per second over the last ten seconds.", status.texts_per_second)
        yield from throughput.batch_texts.collect()
        yield from throughput.inference_seconds.collect()
        yield _new.gauge("batch_tokens", "Current limit of padded tokens per inference.", status.batch_tokens)
        yield _new.counter(
            "halvings", "Batches that failed, for example for lack of memory, and were halved.", inference.halvings
        )
        yield _new.counter("failed_texts", "Texts that failed alone.", inference.failures)
        yield _new.counters("asks", "Asks by outcome.", "outcome", asks.outcomes)
        yield _new.counters("jobs", "Jobs by verdict.", "verdict", jobs.verdicts)
        yield _new.gauge("queue", "Jobs in the streams of all namespaces at the last scan.", status.queue_depth)
        yield _new.gauge("held_jobs", "Jobs read and not yet committed.", len(jobs.held_jobs))
        yield _new.gauge("waiting_asks", "Asks read and not yet answered.", len(asks))
        gpu = sidecar.read_gpu()
        if gpu is not None:
            yield from _optional("gpu_utilisation", "Share of the time that the GPU was busy.", gpu.utilisation)
            yield from _optional("gpu_memory_used_bytes", "Memory of the GPU in use by all processes.", gpu.memory_used)
            yield from _optional("gpu_memory_bytes", "Memory of the GPU.", gpu.memory_total)
            yield from _optional("gpu_temperature_celsius", "Temperature of the GPU.", gpu.temperature)
            yield from _optional("gpu_power_watts", "Power draw of the GPU.", gpu.power)


def _optional(name: str, description: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield _new.gauge(name, description, value)
