"""The arguments of the memory tools, with the descriptions that agents read."""

from __future__ import annotations

from functools import cache, partial
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from memory_core.records.bounded_json import parse_json
from memory_core.records.ids import bare, bare_id, split_ids
from memory_core.records.memory import MemoryType, Priority, Visibility
from memory_server.contract.events import EventKind
from memory_server.contract.given_names import GivenNames
from memory_server.contract.tokens import DEFAULT_MAX_TOKENS
from memory_server.contract.written_values import Reader, item_of, reader_of

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


def _without_blanks(value: Any) -> Any:
    """Read a list of texts like `_as_list`, without items that are null or empty."""
    value = _as_list(value)
    return [item for item in cast(list[Any], value) if not _is_blank(item)] if isinstance(value, list) else value


def _is_blank(value: Any) -> bool:
    return value is None or value == ""


def _canonical(value: Any, info: ValidationInfo) -> Any:
    """Turn a given agent name into the name of the agent, where the context of the validation allows that."""
    names, value = info.context, bare(value)
    return names.canonical(value) if isinstance(names, GivenNames) and isinstance(value, str) else value


def _as_ids(value: Any) -> Any:
    """Accept a list of ids, its JSON, or text that lists them; a bracket may also be copied with one id."""
    if isinstance(value, str):
        listed = as_json(value)
        is_text = not isinstance(listed, list) and "\\" not in value
        value = split_ids(value, _MAX_ITEMS + 1) if is_text else listed
    return _without_blanks(value)


def as_json(value: Any) -> Any:
    """Accept an object or its JSON; validation refuses unreadable text later."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except (ValueError, TypeError):
        return value


ListOf = Annotated[list[T], BeforeValidator(_without_blanks)]
Id = Annotated[str, BeforeValidator(bare_id)]
"""An id, a lease token or a cursor: text that tools gave, perhaps copied with what stood around it."""
Ids = Annotated[list[Id], BeforeValidator(_as_ids)]
WholeListOf = Annotated[list[T], BeforeValidator(_as_list)]
"""A list in which each item has its place, so that none may be left out."""
JsonObject = Annotated[dict[str, Any], BeforeValidator(as_json)]
_NOT_TEXT = "a value that is written as text"
Time = Annotated[str | float, _NOT_TEXT, BeforeValidator(bare)]
AgentName = Annotated[str, BeforeValidator(_canonical)]
AgentId = Annotated[AgentName | None, Field(description="default: you")]
MaxTokens = Annotated[int, Field(ge=0, description="most tokens of the answer; 0 for all")]
MinScore = Annotated[float, Field(ge=0, le=1)]


class Arguments(BaseModel):
    """Base of all: unknown arguments are refused. Tools and use cases take the whole model as `args`.

    Clients fill in optional arguments that they have no value for. For these, null, empty text and a list of nothing
    else count as absent, and so does the word null where the argument is not text.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True, allow_inf_nan=False)

    means_empty: ClassVar[frozenset[str]] = frozenset()
    """Optional arguments for which empty text is a value."""
    unused_if_empty: ClassVar[frozenset[str]] = frozenset()
    """Lists for which an empty one counts as absent."""
    whole_lists: ClassVar[frozenset[str]] = frozenset()
    """Lists in which each item has its place: none of nulls counts as absent."""

    @model_validator(mode="before")
    @classmethod
    def _without_absent(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in cast(dict[Any, Any], given).items() if not cls._is_absent(name, value)}

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        read = _readers(cls).get(info.field_name or "")
        return value if read is None else read(value)

    @classmethod
    def _is_absent(cls, name: Any, value: Any) -> bool:
        field = cls.model_fields.get(name)
        if field is None or field.is_required():
            return False
        if isinstance(value, list):
            is_value = name in cls.whole_lists or (not value and name not in cls.unused_if_empty)
            return not is_value and all(map(_is_blank, cast(list[Any], value)))
        if isinstance(value, str) and value in _NULL_WORDS:
            return not _is_text(field.annotation)
        return value is None or (value == "" and name not in cls.means_empty)


_NULL_WORDS = ("null", "None")


@cache
def _readers(model: type[Arguments]) -> dict[str, Reader]:
    """Return what reads the values of a model's arguments, by name, for those that are numbers or choices."""
    readers: dict[str, Reader] = {}
    for name, field in model.model_fields.items():
        item = item_of(field.annotation)
        read = reader_of(field.annotation if item is None else item)
        if read is not None:
            readers[name] = read if item is None else partial(_read_each, read)
    return readers


def _read_each(read: Reader, value: Any) -> Any:
    items = _without_blanks(value)
    return [read(item) for item in cast(list[Any], items)] if isinstance(items, list) else value


@cache
def _is_text(annotation: Any) -> bool:
    """Whether an argument may be any text."""
    if get_origin(annotation) is Annotated:
        return _NOT_TEXT not in annotation.__metadata__ and _is_text(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return any(map(_is_text, get_args(annotation)))
    return annotation in (str, Any)


class NoArguments(Arguments):
    """gpu_status"""


class Filters(Arguments):
    """Filters of searches and lists."""

    agent_ids: ListOf[AgentName] | None = Field(default=None, description="whose memories")
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

    whole_lists = frozenset({"vector"})

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
    vector: WholeListOf[float] | None = Field(default=None, description="ready-made, for type embedding only")


class RetrieveArguments(Arguments):
    """retrieve_memory"""

    memory_id: Id
    rev: int | None = Field(default=None, ge=1, description="refuse if another revision is the current one")
    chunk: int | None = Field(default=None, ge=1, description="begin at this chunk of a long content")
    max_tokens: MaxTokens = DEFAULT_MAX_TOKENS
    cursor: Id | None = Field(default=None, description="next_cursor of the page before")


class ListArguments(Filters):
    """get_agent_memories"""

    agent_id: AgentId = None
    limit: int = Field(default=20, ge=1, le=100)
    cursor: Id | None = Field(default=None, description="next_cursor of the last page")


class UpdateArguments(Arguments):
    """update_memory"""

    means_empty = frozenset({"content", "context"})

    memory_id: Id
    content: str | None = Field(default=None, description="replaces all")
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

    memory_ids: Ids | None = Field(default=None, description="these, or give filters")
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
    max_tokens: MaxTokens = DEFAULT_MAX_TOKENS
    deadline_ms: int | None = Field(default=None, ge=1, le=60_000)


class SimilarArguments(Filters):
    """find_similar_memories"""

    memory_id: Id
    limit: int = Field(default=10, ge=1, le=100)
    min_score: MinScore = 0.0
    exact: bool = Field(default=False, description="compare with all")


class StatsArguments(Arguments):
    """memory_stats"""

    agent_id: AgentName | None = Field(default=None, description="its writer")
    since: Time | None = Field(default=None, description="also count what is newer")


class BatchArguments(Arguments):
    """batch_operations"""

    operations: WholeListOf[dict[str, Any]] = Field(description="each {op: tool, ...arguments}; stores do not wait")
    stop_on_error: bool = False
    max_tokens: MaxTokens = DEFAULT_MAX_TOKENS


class WaitArguments(Arguments):
    """wait_for_events"""

    cursor: Id | None = Field(default=None, description="of the last answer; default: where your last call ended")
    kinds: ListOf[EventKind] | None = Field(default=None, description="default: all; match needs query")
    query: str | None = Field(default=None, description="wake when a memory close to this is stored")
    timeout_seconds: float = Field(default=30, ge=0, le=300)
    min_score: MinScore | None = None
