"""Traces operations across processes with OpenTelemetry. Its SDK is imported only if a collector is configured.

Spans carry names, counts and outcomes, but no content, memory ids or agent names. The tracer provider is not the
process's global one, so spans of other libraries, which may quote arguments, are not sent.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from memory_core.errors import NotSupported
from memory_core.settings.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

log = logging.getLogger(__name__)
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PATH = "/v1/traces"
_FLUSH_MS = 2000
_HINT = "pip install 'redis-memory-gpu[otel]'"
_OFF = nullcontext(trace.INVALID_SPAN)
_propagator = TraceContextTextMapPropagator()
_tracer: trace.Tracer | None = None
_provider: TracerProvider | None = None
Value = str | int | float | bool


def is_configured(settings: Settings) -> bool:
    """Whether the settings or the environment name a collector."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return settings.observe.traces is not None or any(os.environ.get(name) for name in _ENDPOINTS)


def start(settings: Settings, service: str, version: str) -> bool:
    """Start tracing if a collector is configured. Return whether it started, and so must be stopped.

    Blocks while it imports the SDK.

    Raises:
        NotSupported: `observe.traces` is set and the SDK is not installed.
    """
    if not is_configured(settings) or _tracer is not None:
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        if settings.observe.traces is not None:
            raise NotSupported("observe.traces needs OpenTelemetry, which is not installed", hint=_HINT) from error
        log.warning("nothing is traced: OpenTelemetry is not installed; %s", _HINT)
        return False
    url = settings.observe.traces
    # Like the environment variable, the setting may be the collector's base URL.
    endpoint = url and url.removesuffix(_PATH).rstrip("/") + _PATH
    use(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)), service, version)
    return True


def use(processor: SpanProcessor, service: str, version: str) -> None:
    """Send spans to a processor."""
    global _tracer, _provider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    named = {"service.version": version} | ({} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service})
    _provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    _provider.add_span_processor(processor)
    _tracer = _provider.get_tracer("redis-memory-gpu", version)


def stop() -> None:
    """Send the remaining spans and stop tracing."""
    global _tracer, _provider
    provider, _tracer, _provider = _provider, None, None
    if provider is not None:
        provider.force_flush(_FLUSH_MS)
        provider.shutdown()


def span(name: str, *, server: bool = False, **attributes: Value) -> AbstractContextManager[trace.Span]:
    """Make a span below the current one; without one, only a `server` span starts a trace. Records no exceptions."""
    if _tracer is None or not (server or trace.get_current_span().get_span_context().is_valid):
        return _OFF
    kind = trace.SpanKind.SERVER if server else trace.SpanKind.INTERNAL
    return _tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
    )


def carrier() -> str:
    """Return the current trace as a W3C `traceparent` for a message; empty if it is not sampled."""
    if _tracer is None or not trace.get_current_span().get_span_context().trace_flags.sampled:
        return ""
    return _traceparent(trace.get_current_span())


def current_id() -> str:
    """Return the id of the current trace for the log; empty without one."""
    if _tracer is None:
        return ""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def now() -> int:
    """Return the current time for `record_span`; 0 if tracing is off."""
    return time.time_ns() if _tracer is not None else 0


def record_span(name: str, carried: str, since: int, **attributes: Value) -> str:
    """Record a span from `since` until now in the trace of a message. Return its `traceparent` for spans below it."""
    if _tracer is None or not carried or not since:
        return ""
    parent = _propagator.extract({"traceparent": carried})
    if not trace.get_current_span(parent).get_span_context().is_valid:
        return ""
    kind = trace.SpanKind.CONSUMER
    recorded = _tracer.start_span(name, context=parent, kind=kind, attributes=attributes, start_time=since)
    recorded.end()
    return _traceparent(recorded)


def _traceparent(span: trace.Span) -> str:
    carried: dict[str, str] = {}
    _propagator.inject(carried, context=trace.set_span_in_context(span))
    return carried.get("traceparent", "")
