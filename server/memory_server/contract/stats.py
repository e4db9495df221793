"""Answers of the statistics tools."""

from __future__ import annotations

from pydantic import BaseModel, Field

from memory_core.store.sidecar import BulkStatus, SidecarStatus
from memory_server.contract.answer import Answer
from memory_server.contract.untrusted_text import counted


class Percentiles(BaseModel):
    """Latency in milliseconds of the last calls of this server process: yours, or all if you may see all figures."""

    count: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class CacheFigures(BaseModel):
    """Hits of the vector cache for your texts since this server process started."""

    process_hits: int
    redis_hits: int
    misses: int
    hit_rate: float | None = Field(default=None, description="hits to all requests")


class Retention(BaseModel):
    """When the counted memories expire."""

    never: int
    within_day: int
    within_week: int
    expired: int = Field(description="past their lifetime, hidden, and removed from Redis within the grace")


class IndexHealth(BaseModel):
    """State of the namespace's search index."""

    progress: float = Field(description="share of the records that it covers")
    failures: int | None = Field(default=None, description="records that the index refused; null if hidden from you")
    model: str
    dimension: int


class TaskFigures(BaseModel):
    """Tasks that the caller submitted, the newest thousand; an admin sees those of the namespace."""

    by_state: dict[str, int] = {}
    completion_rate: float | None = Field(default=None, description="completed tasks to all that ended")


class AgentFigures(BaseModel):
    """Figures of one registered agent."""

    agent: str
    alive: bool
    open_tasks: int
    max_tasks: int
    share: float | None = Field(default=None, description="of all open tasks of live agents; equal shares are balance")
    completed: int
    failed: int
    mean_ms: float | None = Field(default=None, description="of its completed tasks")


class StatsAnswer(Answer):
    """Figures on the memories that the caller may read."""

    namespace: str
    agent: str
    total: int
    own: int
    by_type: dict[str, int]
    by_priority: dict[str, int]
    by_visibility: dict[str, int]
    by_agent: dict[str, int]
    created_last_hour: int
    created_last_day: int
    created_since: int | None = None
    bytes_estimate: int = Field(description="Redis memory of the counted memories, extrapolated from a sample")
    pieces: int = Field(default=0, description="texts that are searched, one or more a memory")
    vector_backlog: int
    vectors_failed: int = Field(default=0, description="texts that could not be embedded; words find them")
    retention: Retention
    index: IndexHealth
    cache: CacheFigures
    search_latency_ms: Percentiles
    embedding_latency_ms: Percentiles
    tasks: TaskFigures = TaskFigures()
    agents: list[AgentFigures] = Field(default_factory=list[AgentFigures])

    def lines(self) -> list[str]:
        median = self.search_latency_ms.p50
        latency = "unknown" if median is None else f"{median} ms"
        failed = f", {self.vectors_failed} could not be embedded" if self.vectors_failed else ""
        types = ", ".join(f"{name} {number}" for name, number in sorted(self.by_type.items()))
        return [
            f"{counted(self.total, 'memory', 'memories')} readable by {self.agent} in {self.namespace} "
            f"({self.own} own), {self.vector_backlog} waiting for vectors{failed}, index {self.index.progress:.0%}; "
            f"search p50 {latency}. By type: {types or 'none'}."
        ]


class Sidecar(BaseModel):
    """One sidecar; memory in bytes. Load figures only if you may see all figures."""

    id: str
    host: str
    pid: int
    state: str
    model: str
    dimension: int
    backend: str
    device: str
    provider: str
    fallback: str
    started_at: float
    updated_at: float
    memory_used: int | None = None
    memory_total: int | None = None
    utilisation: float | None = None
    temperature: float | None = None
    power: float | None = None
    batch_tokens: int | None = None
    texts_per_second: float | None = None
    texts_total: int | None = None
    asks_total: int | None = None
    queue_depth: int | None = None
    bulk: BulkStatus | None = None

    @classmethod
    def of(cls, status: SidecarStatus, *, busy: bool) -> Sidecar:
        """Build the view of a sidecar; `busy` includes its load figures."""
        return cls.model_validate(status.model_dump(exclude=None if busy else _BUSY))


_BUSY = {
    "memory_used", "utilisation", "temperature", "power", "batch_tokens", "texts_per_second", "texts_total",
    "asks_total", "queue_depth", "bulk",
}  # fmt: skip


class GpuAnswer(Answer):
    """Each embedding sidecar and what accelerates it."""

    sidecars: list[Sidecar]
    queue_depth: int | None = Field(default=None, description="embed jobs waiting in this namespace")
    libraries: dict[str, bool] = Field(description="which acceleration libraries this server's host has installed")
    bulk: str = Field(description="the sidecars that compare many vectors at once, and of what")
    fallbacks: list[str] = Field(description="what runs on the CPU although acceleration is configured, and why")

    def lines(self) -> list[str]:
        lines = [
            f"{s.id}: {s.state} on {s.device} ({s.backend}, {s.provider}), {s.model}"
            + (f", {s.texts_per_second:.0f} texts/s, queue {s.queue_depth}" if s.texts_per_second is not None else "")
            for s in self.sidecars
        ]
        return [*lines, f"Bulk engine: {self.bulk}", *self.fallbacks] if lines else ["No sidecar."]
