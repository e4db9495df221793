"""The groups of settings. Each description appears in `redis-memory settings` and docs/settings.md."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from memory_core.records.model import Model

DAY = 86_400
CENTURY = 100 * 365 * DAY


class SettingsGroup(BaseModel):
    """Refuses unknown settings, and quotes no value in errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class RedisSettings(SettingsGroup):
    """Where Redis is. With neither `url` nor `host`, the embedded default is used."""

    url: SecretStr | None = Field(default=None, description="URL of Redis; overrides the rest of this group")
    host: str | None = Field(
        default=None,
        pattern=r"^([^\s/@\[\]?#:]+|[0-9A-Fa-f:.]+(%\w+)?)$",
        description="name or address; a stock localhost:6379 without an answer falls back to the embedded one",
    )
    port: int = Field(default=6379, ge=1, le=65535, description="TCP port of Redis")
    db: int = Field(default=0, ge=0, description="only 0 works: the Query Engine indexes no other database")
    username: str | None = Field(default=None, description="user of Redis's ACL; null is its default user")
    password: SecretStr | None = Field(default=None, description="password of that user")
    password_file: Path | None = Field(default=None, description="file that holds that password instead")
    timeout_seconds: float = Field(default=5.0, gt=0, le=300, description="deadline of one read or write")


class GpuSettings(SettingsGroup):
    """Where a sidecar computes embeddings. The starting server passes device and acceleration to the embedded one."""

    enable_acceleration: bool = Field(default=True, description="whether accelerators are used at all")
    preferred_device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|xpu|(cuda|rocm)(:\d+)?)$",
        description="auto, cpu, mps, xpu, cuda[:N] or rocm[:N]",
    )
    fallback_to_cpu: bool = Field(
        default=True, description="use the CPU, with a warning, if it is missing; else refuse"
    )


class HnswSettings(SettingsGroup):
    """The graph of the Redis index; used when an index is made."""

    m: int = Field(default=16, ge=4, le=512, description="edges of each node: recall and memory use grow with it")
    ef_construction: int = Field(default=100, ge=16, le=4096, description="candidates examined when a vector is added")
    ef_runtime: int = Field(default=100, ge=10, le=4096, description="candidates examined by a search")


class VectorStoreSettings(SettingsGroup):
    """The embedding model and the indexes over its vectors.

    `index_type` and `rebuild_threshold` are for the FAISS bulk engine; the Redis index is always HNSW.
    """

    embedding_model: str = Field(
        default="all-MiniLM-L6-v2",
        min_length=1,
        max_length=1024,
        description="model of new namespaces; `redis-memory reindex` changes others",
    )
    vector_dimension: int = Field(default=384, ge=8, le=8192, description="numbers in one vector of that model")
    index_type: Literal["Flat", "IVFFlat", "HNSW", "CAGRA"] = Field(
        default="IVFFlat",
        description="FAISS index for many searches at once; Flat compares with all, CAGRA is HNSW without a GPU",
    )
    rebuild_threshold: int = Field(
        default=1000,
        ge=1,
        le=1_000_000_000,
        description="vectors that start a FAISS index, and changes that rebuild it",
    )
    hnsw: HnswSettings = HnswSettings()

    @property
    def model(self) -> Model:
        """The model of new namespaces."""
        return Model(self.embedding_model, self.vector_dimension)

    def with_model(self, model: Model) -> VectorStoreSettings:
        return self.model_copy(update={"embedding_model": model.name, "vector_dimension": model.dimension})


class LifetimeSettings(SettingsGroup):
    """Seconds that a memory of each priority lives, unless `ttl_seconds` is given; null is forever."""

    critical: int | None = Field(default=None, ge=1, le=CENTURY, description="seconds that critical memories live")
    high: int | None = Field(default=90 * DAY, ge=1, le=CENTURY, description="seconds that high memories live")
    medium: int | None = Field(default=30 * DAY, ge=1, le=CENTURY, description="seconds that medium memories live")
    low: int | None = Field(default=7 * DAY, ge=1, le=CENTURY, description="seconds that low memories live")
    archive: int | None = Field(default=None, ge=1, le=CENTURY, description="seconds that archived memories live")
    grace: int = Field(default=3600, ge=1, le=365 * DAY, description="seconds between expiry and removal from Redis")


class CacheSettings(SettingsGroup):
    """Vectors of texts seen before, kept in the process and in Redis."""

    entries: int = Field(default=10_000, ge=1, le=10_000_000, description="vectors kept in the process, 0.8 kB each")
    policy: Literal["lru", "lfu", "ttl"] = Field(
        default="lru", description="which entry is evicted: least recently used, least often used, or oldest"
    )
    ttl_seconds: float = Field(default=3600, gt=0, le=CENTURY, description="lifetime in the process with policy ttl")
    redis_ttl_seconds: int = Field(default=DAY, ge=0, le=CENTURY, description="lifetime in Redis; 0 turns it off")
    redis_entries: int = Field(
        default=200, ge=0, le=1000, description="vectors of one agent kept in Redis, 0.9 kB each; 0 turns it off"
    )
    sealed_bytes: int = Field(default=64 << 20, ge=0, le=1 << 40, description="bytes of decrypted sensitive vectors")


class TaskSettings(SettingsGroup):
    """How tasks are assigned, retried and kept."""

    claim_seconds: float = Field(
        default=60.0, gt=0, le=DAY, description="seconds until an unclaimed task is reassigned"
    )
    backoff_seconds: float = Field(
        default=1.0, gt=0, le=DAY, description="first pause; it doubles each time, with jitter"
    )
    backoff_most_seconds: float = Field(default=300.0, gt=0, le=DAY, description="longest pause between two attempts")
    keep_seconds: int = Field(default=7 * DAY, ge=1, le=CENTURY, description="seconds that an ended task is kept")
    open_tasks: int = Field(default=20_000, ge=1, le=10_000_000, description="tasks open at a time in a namespace")
    payload_bytes: int = Field(default=65_536, ge=2, le=1 << 24, description="bytes of a payload or result, as JSON")
    similar_from: float = Field(default=0.85, ge=0, le=1, description="cosine from which open tasks count as similar")
    memories_from: float = Field(
        default=0.35, ge=0, le=1, description="cosine from which a memory is attached to a task that is handed out"
    )


class LimitSettings(SettingsGroup):
    """Limits that are checked before anything reaches Redis.

    Agents share slots, waiting calls, requests, bytes and sessions: one alone can take a part, never all.
    """

    content_bytes: int = Field(default=1 << 20, ge=1, le=1 << 26, description="bytes of one memory's content, as UTF-8")
    metadata_bytes: int = Field(default=16_384, ge=2, le=1 << 20, description="bytes of one memory's metadata, as JSON")
    query_bytes: int = Field(default=16_384, ge=1, le=1 << 20, description="bytes of one search query")
    tags: int = Field(default=32, ge=0, le=1000, description="tags of one memory or filter")
    results: int = Field(default=100, ge=1, le=100, description="most hits of one search, and memories of one page")
    ids: int = Field(default=100, ge=1, le=10_000, description="memory ids in one call")
    offer_days: int = Field(default=30, ge=1, le=3650, description="days that an offer waits for its receiver")
    operations: int = Field(default=1000, ge=1, le=10_000, description="operations of one batch")
    batch_wait_seconds: float = Field(
        default=300.0, ge=0, le=DAY, description="seconds after which the operations of a batch no longer wait"
    )
    clear: int = Field(default=100_000, ge=1, description="memories after which one clear_memory call ends")
    body_bytes: int = Field(default=4 << 20, ge=1024, le=1 << 30, description="bytes of one HTTP request or stdio line")
    calls_per_second: float = Field(
        default=500.0, gt=0, le=1e9, description="average calls per second of one agent; each batch operation counts"
    )
    burst: int = Field(default=5000, ge=1, le=1_000_000_000, description="calls of one agent in a burst")
    calls_at_once: int = Field(default=16, ge=1, le=10_000, description="calls that run at a time; waits do not count")
    calls_waiting: int = Field(
        default=5000, ge=0, le=100_000, description="calls that may wait; others get `overloaded`"
    )
    patience_seconds: float = Field(
        default=15.0, ge=0, le=600, description="seconds after which a burst is an overload"
    )
    requests: int = Field(default=10_000, ge=1, le=1_000_000, description="HTTP requests at a time, with event waits")
    questions: int = Field(
        default=4, ge=1, le=1000, description="questions to the person that one agent may have unanswered"
    )
    question_seconds: float = Field(
        default=120.0, gt=0, le=DAY, description="seconds after which such a question is given up"
    )
    send_seconds: float = Field(
        default=60.0, gt=0, le=DAY, description="seconds after which a stream that its client does not read ends"
    )
    sessions: int = Field(
        default=10_000, ge=1, le=1_000_000, description="open sessions of clients of the eras up to 2025-11-25"
    )
    request_bytes: int = Field(default=256 << 20, ge=1024, le=1 << 40, description="bytes of all HTTP bodies together")


class QuotaSettings(SettingsGroup):
    """What one agent may store in a namespace; 0 is no limit."""

    memories: int = Field(default=1_000_000, ge=0, description="unexpired memories of one agent; 0 is any number")
    pieces: int = Field(default=5_000_000, ge=0, description="chunks of them, each with a vector; 0 is any number")
    pieces_per_grant: int = Field(
        default=1000, ge=0, description="chunks that one write grant may add to its owner's memories; 0 is any number"
    )
    open_tasks: int = Field(default=10_000, ge=0, description="open tasks that one agent submitted; 0 is any number")


class BulkSettings(SettingsGroup):
    """The bulk engine of a sidecar: exact searches, many searches at once, and reports on an agent's memories."""

    memory_bytes: int = Field(
        default=1 << 30, ge=0, le=1 << 44, description="memory for vectors, 2 kB each, least used evicted; 0 is off"
    )


class DurabilitySettings(SettingsGroup):
    """What a write waits for. Critical memories always wait for the disk."""

    level: Literal["default", "synced"] = Field(
        default="default", description="default: only critical memories wait for the disk; synced: all do"
    )
    replicas: int = Field(default=1, ge=0, le=16, description="replicas they also wait for, if there are so many")
    wait_seconds: float = Field(
        default=3.0, ge=0, le=60, description="longest wait; after it the sync is reported as unknown; 0 never waits"
    )


class AuditSettings(SettingsGroup):
    """Retention of the audit. Older entries are deleted up to a seal; the chain continues from that seal."""

    keep_days: int = Field(default=365, ge=0, le=36_500, description="days that an entry is kept; 0 is forever")
    keep_entries: int = Field(
        default=0, ge=0, le=1_000_000_000, description="entries kept, roughly; 0 is all, so that no flood deletes any"
    )


class ObserveSettings(SettingsGroup):
    """Metrics, traces and logs. `/metrics` is open while authentication is off; otherwise it needs its own token."""

    metrics_token: SecretStr | None = Field(
        default=None, description="bearer token of `/metrics`; without one it is closed while authentication is on"
    )
    metrics_token_file: Path | None = Field(default=None, description="file that holds that token instead")
    traces: str | None = Field(
        default=None, pattern=r"^https?://\S+$", description="URL of a collector, as in OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    log_calls: bool = Field(default=False, description="whether each call logs its operation, outcome and time")
