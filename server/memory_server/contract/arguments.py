"""The arguments of the memory tools, with the descriptions that agents read."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from memory_core.records.bounded_json import parse_json
from memory_core.records.memory import MemoryType, Priority, Visibility
from memory_server.contract.events import EventKind

T = TypeVar("T")
_MAX_ITEMS = 10_000
"""Of any list: each wrong item makes an error of its own."""


def _as_list(value: Any) -> Any:
    """Accept a list, its JSON, or comma-separated text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = as_json(value)
    elif isinstance(value, str) and value.count(",") <= _MAX_ITEMS:
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list) and len(cast(list[Any], value)) > _MAX_ITEMS:
        raise ValueError(f"a list has at most {_MAX_ITEMS} items")
    return value


def as_json(value: Any) -> Any:
    """Accept an object or its JSON; validation refuses unreadable text later."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except (ValueError, TypeError):
        return value


ListOf = Annotated[list[T], BeforeValidator(_as_list)]
JsonObject = Annotated[dict[str, Any], BeforeValidator(as_json)]
Time = str | float
AgentId = Annotated[str | None, Field(description="default: you")]
MinScore = Annotated[float, Field(ge=0, le=1)]


class Arguments(BaseModel):
    """Base of all: unknown arguments are refused. Tools and use cases take the whole model as `args`."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True, allow_inf_nan=False)


class NoArguments(Arguments):
    """gpu_status"""


class Filters(Arguments):
    """Filters of searches and lists."""

    agent_ids: ListOf[str] | None = Field(default=None, description="whose memories")
    memory_types: ListOf[MemoryType] | None = None
    priorities: ListOf[Priority] | None = None
    tags: ListOf[str] | None = None
    tag_match: Literal["any", "all"] = "any"
    context: str | None = Field(default=None, description="session, thread or project")
    source: str | None = Field(default=None, description="speaker, file or URL")
    since: Time | None = Field(default=None, description="when it happened: ISO 8601, epoch or '2 days ago'")
    until: Time | None = None
    include_archive: bool = False

    @property
    def has_filters(self) -> bool:
        named = (self.agent_ids, self.memory_types, self.priorities, self.tags, self.context, self.source)
        return any(named) or self.since is not None or self.until is not None


class StoreArguments(Arguments):
    """store_memory"""

    content: str
    memory_type: MemoryType = MemoryType.CONTEXT
    priority: Priority = Field(
        default=Priority.MEDIUM,
        description="lifetime: critical forever, high 90 days, medium 30, low 7, archive forever but not searched",
    )
    visibility: Visibility = Field(
        default=Visibility.PRIVATE,
        description="private: you and your grants; shared: meant for grants; public: all",
    )
    tags: ListOf[str] | None = None
    context: str | None = Field(default=None, description="session, thread or project")
    source: str | None = Field(default=None, description="who or what said it")
    occurred_at: Time | None = Field(default=None, description="default: now")
    metadata: JsonObject | None = None
    sensitive: bool = Field(default=False, description="encrypt it")
    ttl_seconds: int | None = Field(default=None, description="instead of the priority's lifetime")
    idempotency_key: str | None = Field(default=None, description="same key, same memory")
    wait: bool = Field(default=True, description="for the vector, up to 2 s")
    agent_id: AgentId = None
    vector: ListOf[float] | None = Field(default=None, description="ready-made, for type embedding only")


class RetrieveArguments(Arguments):
    """retrieve_memory"""

    memory_id: str


class ListArguments(Filters):
    """get_agent_memories"""

    agent_id: AgentId = None
    limit: int = Field(default=20, ge=1, le=100)
    cursor: str | None = Field(default=None, description="next_cursor of the last page")


class UpdateArguments(Arguments):
    """update_memory"""

    memory_id: str
    content: str | None = None
    priority: Priority | None = Field(default=None, description="restarts the lifetime")
    visibility: Visibility | None = None
    tags: ListOf[str] | None = Field(default=None, description="replaces all")
    context: str | None = Field(default=None, description="'' removes it")
    metadata: JsonObject | None = Field(default=None, description="replaces all")
    expected_rev: int | None = Field(default=None, description="refuse if changed since")

    @property
    def changed(self) -> frozenset[str]:
        """The names of the fields to change; an empty list, text or map removes a value, None keeps it."""
        names = ("content", "priority", "visibility", "tags", "context", "metadata")
        return frozenset(name for name in names if getattr(self, name) is not None)


class ClearArguments(Filters):
    """clear_memory"""

    memory_ids: ListOf[str] | None = Field(default=None, description="these, or give filters")
    expired_only: bool = Field(default=False, description="past their lifetime")
    dry_run: bool = Field(default=False, description="count only")
    confirm: bool = Field(default=False, description="delete more than one without asking the person")


class SearchArguments(Filters):
    """semantic_search"""

    query: str
    mode: Literal["hybrid", "vector", "keyword"] = "hybrid"
    limit: int = Field(default=10, ge=1, le=100)
    min_score: MinScore = 0.0
    recency_weight: float = Field(default=0.0, ge=0, le=1, description="share of newness in the score")
    priority_weight: float = Field(default=0.0, ge=0, le=1, description="share of priority")
    rerank: bool = Field(default=False, description="more exact, slower")
    max_tokens: int | None = Field(default=None, ge=1, description="budget of the answer")
    deadline_ms: int | None = Field(default=None, ge=1, le=60_000)


class SimilarArguments(Filters):
    """find_similar_memories"""

    memory_id: str
    limit: int = Field(default=10, ge=1, le=100)
    min_score: MinScore = 0.0
    exact: bool = Field(default=False, description="compare with all")


class StatsArguments(Arguments):
    """memory_stats"""

    agent_id: str | None = Field(default=None, description="its writer")
    since: Time | None = Field(default=None, description="also count what is newer")


class BatchArguments(Arguments):
    """batch_operations"""

    operations: ListOf[dict[str, Any]] = Field(description="each {op: a tool, ...its arguments}; stores do not wait")
    stop_on_error: bool = False


class WaitArguments(Arguments):
    """wait_for_events"""

    cursor: str | None = Field(default=None, description="of the last answer; default: where your last call ended")
    kinds: ListOf[EventKind] | None = Field(default=None, description="default: all; match needs query")
    query: str | None = Field(default=None, description="wake when a memory close to this is stored")
    timeout_seconds: float = Field(default=30, ge=0, le=300)
    min_score: MinScore | None = None
