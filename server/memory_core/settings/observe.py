"""Settings of observability: metrics, traces and a log line per call."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from memory_core.settings.group import SettingsGroup


class ObserveSettings(SettingsGroup):
    """Metrics, traces and logs. `/metrics` is open while authentication is off; otherwise it needs its own token."""

    metrics_token: SecretStr | None = Field(
        default=None,
        description="bearer token of `/metrics`; without one `/metrics` is closed while authentication is on",
    )
    metrics_token_file: Path | None = Field(default=None, description="file that holds that token instead")
    traces: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description="URL of an OpenTelemetry collector (OTLP over HTTP); OTEL_EXPORTER_OTLP_ENDPOINT works too",
    )
    log_calls: bool = Field(
        default=False, description="whether each call writes a log line: operation, outcome, time; never content"
    )
