"""Follows one operation over process borders with OpenTelemetry, whose packages are imported only where this is on.

Spans carry names, counts and outcomes, never content, ids of memories or names of agents. The provider is ours and not
the process's global one, so that no other library's spans, which may quote arguments, are sent along.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from memory_core.errors import NotSupported
from memory_core.settings.settings import Settings

log = logging.getLogger(__name__)
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PATH = "/v1/traces"
_FLUSH_MS = 2000
_HINT = "pip install 'redis-memory-gpu[otel]'"
Value = str | int | float | bool


class _Off:
    """The span of a process that does not trace."""

    def set_attribute(self, name: str, value: Value) -> None:
        """Do nothing."""


_off = nullcontext(_Off())
_tracer: Any = None
_provider: Any = None
_api: Any = None
_propagator: Any = None


def wanted(settings: Settings) -> bool:
    """Whether the settings or the environment name a collector."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return settings.observe.traces is not None or any(os.environ.get(name) for name in _ENDPOINTS)


def start(settings: Settings, service: str, version: str) -> bool:
    """Begin to trace if a collector is named; whether that was done, and is to be stopped. Takes a moment, for imports.

    Raises:
        NotSupported: our own setting names one, and the packages are missing.
    """
    if not wanted(settings) or _tracer is not None:
        return False
    try:
        exporting = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        sending = importlib.import_module("opentelemetry.sdk.trace.export")
    except ImportError as error:
        if settings.observe.traces is not None:
            raise NotSupported("observe.traces needs OpenTelemetry, which is not installed", hint=_HINT) from error
        log.warning("nothing is traced: OpenTelemetry is not installed; %s", _HINT)
        return False
    url = settings.observe.traces
    exporter = exporting.OTLPSpanExporter(endpoint=_traces_url(url)) if url else exporting.OTLPSpanExporter()
    use(sending.BatchSpanProcessor(exporter), service, version)
    return True


def use(processor: Any, service: str, version: str) -> None:
    """Trace into a span processor of OpenTelemetry."""
    global _tracer, _provider, _api, _propagator
    sdk = importlib.import_module("opentelemetry.sdk.trace")
    resources = importlib.import_module("opentelemetry.sdk.resources")
    propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
    named = {"service.version": version} | ({} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service})
    _provider = sdk.TracerProvider(resource=resources.Resource.create(named), shutdown_on_exit=False)
    _provider.add_span_processor(processor)
    _api, _propagator = importlib.import_module("opentelemetry.trace"), propagation.TraceContextTextMapPropagator()
    _tracer = _provider.get_tracer("redis-memory-gpu", version)


def stop() -> None:
    """Send what is left and trace no more."""
    global _tracer, _provider
    provider, _tracer, _provider = _provider, None, None
    if provider is not None:
        provider.force_flush(_FLUSH_MS)
        provider.shutdown()


def span(name: str, *, server: bool = False, **attributes: Value) -> AbstractContextManager[Any]:
    """Make a span of what runs within, under the one in hand; without one only a `server`'s begins a trace.

    Of an exception it tells nothing.
    """
    if _tracer is None or not (server or _api.get_current_span().get_span_context().is_valid):
        return _off
    kind = _api.SpanKind.SERVER if server else _api.SpanKind.INTERNAL
    return _tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
    )


def carrier() -> str:
    """Give the trace in hand as a message carries it, a W3C `traceparent`; empty when none is kept."""
    if _tracer is None or not _api.get_current_span().get_span_context().trace_flags.sampled:
        return ""
    carried: dict[str, str] = {}
    _propagator.inject(carried)
    return carried.get("traceparent", "")


def current_id() -> str:
    """Give the id of the trace in hand, for the log; empty when there is none."""
    if _tracer is None:
        return ""
    context = _api.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def now() -> int:
    """Give the moment as `told` takes it; 0 where nothing is traced."""
    return time.time_ns() if _tracer is not None else 0


def told(name: str, carried: str, since: int, **attributes: Value) -> str:
    """Tell a span that began at `since` and ends now, of a trace that a message carried; give it for those under it."""
    if _tracer is None or not carried or not since:
        return ""
    parent = _propagator.extract({"traceparent": carried})
    if not _api.get_current_span(parent).get_span_context().is_valid:
        return ""
    made = _tracer.start_span(
        name, context=parent, kind=_api.SpanKind.CONSUMER, attributes=attributes, start_time=since
    )
    made.end()
    below: dict[str, str] = {}
    _propagator.inject(below, context=_api.set_span_in_context(made))
    return below.get("traceparent", "")


def _traces_url(url: str) -> str:
    """Give the address for traces of a collector that was named by its base, as the environment variable does."""
    return url if url.endswith(_PATH) else url.rstrip("/") + _PATH
