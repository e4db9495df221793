"""Settings of how large and how many requests may be, so that no caller and no load takes all memory."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LimitSettings(BaseModel):
    """Caps that are checked before anything reaches Redis."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

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
        default=500.0, gt=0, le=1e9, description="calls of one agent, on the average; each operation of a batch is one"
    )
    burst: int = Field(default=5000, ge=1, le=1_000_000_000, description="calls of one agent all at once")
    calls_at_once: int = Field(
        default=16, ge=1, le=10_000, description="calls that the server works on at a time; what only waits is none"
    )
    calls_waiting: int = Field(
        default=5000, ge=0, le=100_000, description="calls that may wait for that in a burst; more are overloaded"
    )
    patience_seconds: float = Field(
        default=15.0, ge=0, le=600, description="a burst that lasts longer is an overload: few may wait then"
    )
    requests: int = Field(
        default=10_000, ge=1, le=1_000_000, description="HTTP requests at a time, calls that wait for events included"
    )
    request_bytes: int = Field(
        default=256 << 20, ge=1024, le=1 << 40, description="bytes of the bodies of those requests, all together"
    )
