"""Settings of what whoever runs the memory can watch: figures, traces, and a log line for each call."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class ObserveSettings(BaseModel):
    """What can be watched. `/metrics` is open while authentication is off, and else asks for its own token."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    metrics_token: SecretStr | None = Field(
        default=None, description="bearer token that `/metrics` asks for; without one it is closed where tokens are on"
    )
    metrics_token_file: Path | None = Field(default=None, description="file that holds that token instead")
    traces: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description="URL of an OpenTelemetry collector (OTLP over HTTP); OTEL_EXPORTER_OTLP_ENDPOINT does as well",
    )
    log_calls: bool = Field(
        default=False, description="whether each call leaves a log line: operation, outcome, time; never content"
    )
