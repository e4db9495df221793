"""Limits on the size and number of requests."""

from __future__ import annotations

from pydantic import Field

from memory_core.settings.group import SettingsGroup


class LimitSettings(SettingsGroup):
    """Limits that are checked before anything reaches Redis."""

    content_bytes: int = Field(default=1 << 20, ge=1, le=1 << 26, description="bytes of one memory's content, as UTF-8")
    metadata_bytes: int = Field(default=16_384, ge=2, le=1 << 20, description="bytes of one memory's metadata, as JSON")
    query_bytes: int = Field(default=16_384, ge=1, le=1 << 20, description="bytes of one search query")
    tags: int = Field(default=32, ge=0, le=1000, description="tags of one memory or filter")
    results: int = Field(default=100, ge=1, le=100, description="most hits of one search, and memories of one page")
    ids: int = Field(default=100, ge=1, le=10_000, description="memory ids in one call")
    operations: int = Field(default=1000, ge=1, le=10_000, description="operations of one batch")
    clear: int = Field(default=100_000, ge=1, description="memories after which one clear_memory call ends")
    body_bytes: int = Field(default=4 << 20, ge=1024, le=1 << 30, description="bytes of one HTTP request or stdio line")
    calls_per_second: float = Field(
        default=500.0,
        gt=0,
        le=1e9,
        description="average calls per second of one agent; each operation of a batch counts",
    )
    burst: int = Field(default=5000, ge=1, le=1_000_000_000, description="calls of one agent in a burst")
    calls_at_once: int = Field(
        default=16,
        ge=1,
        le=10_000,
        description="calls that the server runs at a time; a call that only waits does not count",
    )
    calls_waiting: int = Field(
        default=5000,
        ge=0,
        le=100_000,
        description="calls that may wait for their turn; more get the error `overloaded`",
    )
    patience_seconds: float = Field(
        default=15.0, ge=0, le=600, description="a burst that lasts longer is an overload, during which few may wait"
    )
    requests: int = Field(
        default=10_000, ge=1, le=1_000_000, description="HTTP requests at a time, including calls that wait for events"
    )
    request_bytes: int = Field(
        default=256 << 20, ge=1024, le=1 << 40, description="bytes of the bodies of all these requests together"
    )
