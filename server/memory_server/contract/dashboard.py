"""Arguments and answers of the dashboard's own tools."""

from __future__ import annotations

from pydantic import BaseModel, Field

from memory_server.contract.answer import Answer
from memory_server.contract.arguments import Arguments, Filters, Id, Ids
from memory_server.contract.sharing import GrantInfo
from memory_server.contract.stats import AgentFigures, CacheFigures, Percentiles, TaskFigures
from memory_server.contract.tasks import TaskView

MOST_POINTS = 20_000
"""Memories on one map."""


class Day(BaseModel):
    """Number of current memories that were stored on a day (ISO date, UTC)."""

    day: str
    stored: int


class CensusAnswer(Answer):
    """Figures on the memories that an agent may read, or for an operator on all of the namespace."""

    namespace: str
    agent: str
    whole: bool = Field(description="true: of all agents' memories")
    total: int
    pieces: int
    vector_backlog: int
    vectors_failed: int = 0
    created_last_hour: int
    created_last_day: int
    by_type: dict[str, int]
    by_priority: dict[str, int]
    by_visibility: dict[str, int]
    by_agent: dict[str, int]
    growth: list[Day]
    index_progress: float
    model: str
    cache: CacheFigures
    search_latency_ms: Percentiles
    embedding_latency_ms: Percentiles
    tasks: TaskFigures
    agents: list[AgentFigures]
    counted_at: str


class BoardAnswer(Answer):
    """Open and recently ended tasks: all, or those that concern an agent."""

    whole: bool = Field(description="true: of all agents")
    now: str
    tasks: list[TaskView]


class GrantsAnswer(Answer):
    """Active grants and offers: all of the namespace, or those of an agent."""

    whole: bool = Field(description="true: of all agents")
    grants: list[GrantInfo]
    offers: list[GrantInfo]


class MapAnswer(Answer):
    """Memories as points, newest first, in columns: `agent` and `type` are indexes into `agents` and `types`."""

    total: int = Field(description="memories with a vector that you may read; the newest of them are shown")
    ids: list[str]
    x: list[float]
    y: list[float]
    agent: list[int]
    type: list[int]
    stored: list[int] = Field(description="epoch seconds")
    agents: list[str]
    types: list[str]
    explained: float | None = Field(default=None, description="share of the vectors' variance that the two axes show")


class Snippet(BaseModel):
    """The beginning of a memory."""

    memory_id: str
    writer: str
    memory_type: str
    priority: str
    created_at: str
    text: str


class SnippetsAnswer(Answer):
    """The beginnings of memories that the caller may read."""

    memories: list[Snippet]

    def shown(self) -> list[str]:
        return [memory.memory_id for memory in self.memories]


class AuditEntry(BaseModel):
    """One audit entry. `proof` is ok, unsigned, unknown key or forged; null without a key."""

    id: str
    number: int
    at: str
    who: str
    acted_as: str | None = None
    op: str
    outcome: str
    ids: list[str] = []
    count: int | None = None
    origin: str = ""
    proof: str | None = None
    sealed: bool = False


class AuditAnswer(Answer):
    """A page of the audit log, newest first, and how far it is sealed."""

    entries: list[AuditEntry]
    next_cursor: str | None = None
    given: int = Field(description="the last number assigned")
    sealed: int = Field(description="up to which number entries are sealed")
    keyed: bool = Field(description="whether there is a key to verify entries")


class AuditProblem(BaseModel):
    """A problem of the audit log, and from which number on."""

    number: int
    kind: str
    detail: str


class AuditCheckAnswer(Answer):
    """The result of a check of the whole audit log."""

    ok: bool
    keyed: bool
    entries: int
    first: int
    sealed_to: int
    unsealed: int
    unsigned: int
    head: str
    number_of_problems: int
    problems: list[AuditProblem]
    checked_at: str


class MapArguments(Filters):
    """dashboard_map"""

    limit: int = Field(default=MOST_POINTS, ge=1, le=MOST_POINTS)
    include_archive: bool = True


class SnippetArguments(Arguments):
    """dashboard_snippets"""

    memory_ids: Ids


class AuditArguments(Arguments):
    """dashboard_audit"""

    who: str | None = None
    op: str | None = None
    outcome: str | None = None
    names: str | None = None
    limit: int = Field(default=50, ge=1, le=500)
    cursor: Id | None = None
