"""Answers of the statistics tools."""

from __future__ import annotations

from pydantic import BaseModel, Field

from memory_core.store.sidecar import BulkStatus, SidecarStatus
from memory_server.contract.answer import Answer
from memory_server.contract.untrusted_text import counted, word
from memory_server.contract.wording import period

_AGENTS = 20
"""Agents that a text names."""


class Percentiles(BaseModel):
    """Latency in milliseconds of the last calls of this server process: yours, or all if you may see all figures."""

    count: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    def words(self) -> str:
        if self.p50 is None or self.p95 is None:
            return "none measured"
        return f"{counted(self.count, 'call')}, p50 {self.p50:.0f} ms, p95 {self.p95:.0f} ms"


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

    def line(self) -> str:
        mean = "" if self.mean_ms is None else f", {self.mean_ms:.0f} ms each"
        state = "alive" if self.alive else "dead"
        return (
            f"Agent {self.agent}: {state}, {self.open_tasks} of {counted(self.max_tasks, 'task')}, "
            f"{self.completed} completed, {self.failed} failed{mean}."
        )


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
    since: str | None = Field(default=None, description="the argument as it was understood")
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
        failed = f", {self.vectors_failed} could not be embedded" if self.vectors_failed else ""
        stored = f"{self.created_last_hour} in the last hour, {self.created_last_day} in the last day"
        if self.created_since is not None:
            stored += f", {self.created_since}{period(self.since, None)}"
        kept, hits = self.retention, self.cache.hit_rate
        lines = [
            f"{counted(self.total, 'memory')} readable by {self.agent} in {self.namespace} "
            f"({self.own} own), about {_size(self.bytes_estimate)}; stored {stored}.",
            *(f"By {name}: {_counts(counts)}." for name, counts in self._groups() if counts),
            f"Lifetime: {kept.never} kept forever, {kept.within_day} end within a day, {kept.within_week} within a "
            f"week, {kept.expired} expired.",
            f"Index {self.index.progress:.0%} ({self.index.model}), {self.vector_backlog} waiting for vectors{failed}; "
            f"cache hits {'unknown' if hits is None else f'{hits:.0%}'}.",
            f"Searches: {self.search_latency_ms.words()}. Embedding: {self.embedding_latency_ms.words()}.",
        ]
        if self.tasks.by_state:
            rate = self.tasks.completion_rate
            done = "" if rate is None else f"; {rate:.0%} of those that ended were completed"
            lines.append(f"Tasks: {_counts(self.tasks.by_state)}{done}.")
        lines += [agent.line() for agent in self.agents[:_AGENTS]]
        more = len(self.agents) - _AGENTS
        return [*lines, *([f"{counted(more, 'more agent')}: list_agents."] if more > 0 else [])]

    def _groups(self) -> list[tuple[str, dict[str, int]]]:
        groups = [("type", self.by_type), ("priority", self.by_priority), ("visibility", self.by_visibility)]
        return [*groups, ("agent", self.by_agent)]


def _counts(counts: dict[str, int]) -> str:
    largest = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    more = f" and {counted(len(largest) - _AGENTS, 'other')}" if len(largest) > _AGENTS else ""
    return ", ".join(f"{word(name)} {number}" for name, number in largest[:_AGENTS]) + more


def _size(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size / 1024:.0f} KiB"


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

    def line(self) -> str:
        figures = [
            f"memory {_size(self.memory_used)}" if self.memory_used is not None else "",
            f"of {_size(self.memory_total)}" if self.memory_total else "",
            f"{self.utilisation:.0f}% busy" if self.utilisation is not None else "",
            f"{self.temperature:.0f} °C" if self.temperature is not None else "",
            f"{self.texts_per_second:.0f} texts/s" if self.texts_per_second is not None else "",
            f"queue {self.queue_depth}" if self.queue_depth is not None else "",
        ]
        busy = "".join(f", {figure}" for figure in figures if figure)
        return f"{self.id}: {self.state} on {self.device} ({self.backend}, {self.provider}), {self.model}{busy}"

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
        if not self.sidecars:
            return ["No embedding sidecar is alive: searches use words only, and new memories wait for vectors."]
        queue = [] if self.queue_depth is None else [f"{counted(self.queue_depth, 'text')} waiting for vectors here."]
        libraries = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in self.libraries.items())
        falls = [f"On the CPU: {fallback}" for fallback in self.fallbacks]
        return [
            *(sidecar.line() for sidecar in self.sidecars),
            *queue,
            f"Bulk engine: {self.bulk}",
            f"Libraries: {libraries}.",
            *falls,
        ]
