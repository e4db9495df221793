"""The lines of our own export files, as docs/moving-data.md and schemas/export.json describe them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from memory_core.records.bounded_json import has_too_many_values
from memory_core.records.ids import ID_PATTERN
from memory_core.records.memory import MemoryType, Priority, Visibility
from memory_core.records.names import NAME_PATTERN, check_agent_name, check_label
from memory_core.records.times import NEVER

FORMAT = "redis-memory"
_MAX_TOKENS = 1_000_000
"""JSON values of a line, roughly."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LARGEST = 1 << 48  # of numbers that go on counting: exact as a float, with room above


def to_text(seconds: float) -> str:
    """Write a time with the microseconds that Redis stores."""
    return (_EPOCH + timedelta(microseconds=round(seconds * 1_000_000))).strftime("%Y-%m-%dT%H:%M:%S.%fZ").zfill(27)


def expiry_to_text(seconds: float) -> str | None:
    """Write a time, or None for never."""
    return None if seconds == NEVER else to_text(seconds)


def from_text(text: str | None) -> float:
    """Read a time that `to_text` or `expiry_to_text` wrote, without loss."""
    return NEVER if text is None else (datetime.fromisoformat(text) - _EPOCH).total_seconds()


def _is_time(text: str) -> str:
    try:
        if to_text(from_text(text)) == text:
            return text
    except (ValueError, TypeError, OverflowError):
        pass
    raise ValueError("a time has the form 2026-05-04T10:00:00.000000Z")


Id = Annotated[str, Field(pattern=ID_PATTERN)]
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
AgentName = Annotated[Name, AfterValidator(check_agent_name)]
Label = Annotated[str, AfterValidator(lambda text: check_label(text))]
Time = Annotated[str, AfterValidator(_is_time)]
Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]
Token = Annotated[str, Field(pattern=r"^[city]:[\x21-\x7e]{1,100}$")]


class Line(BaseModel):
    """A line. Fields without a value are omitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def dump(self) -> bytes:
        """Encode the line; the same values always give the same bytes."""
        values = self.model_dump(mode="json", exclude_none=True)
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class Header(Line):
    """The first line."""

    kind: Literal["redis-memory"] = FORMAT
    version: Literal[1] = 1
    model: str = Field(min_length=1, description="embedding model of the vectors")
    dimension: int = Field(ge=1)
    vectors: bool = Field(description="whether vectors are in the file")
    sensitive: bool = Field(description="whether sensitive memories are in the file")


class AgentLine(Line):
    """An agent name and its owner ids; new memories get `owner`. Earlier holders left the `kept` ones to no agent."""

    kind: Literal["agent"] = "agent"
    name: AgentName
    owner: Id | None = None
    owners: list[Id] = []
    kept: list[Id] = []


class QuarantineLine(Line):
    """An agent under quarantine: other agents do not see what it wrote since a time."""

    kind: Literal["quarantine"] = "quarantine"
    name: Name
    since: Time


class SealedPart(Line):
    """The encrypted part of a sensitive memory, and the id of the master key that opens it."""

    key: str = Field(pattern="^[0-9a-f]{16}$")
    text: Base64
    vectors: list[Base64] | None = None


class MemoryLine(Line):
    """A memory. If it is sensitive, `content` and `metadata` are in `sealed`."""

    kind: Literal["memory"] = "memory"
    id: Id
    owner: Id
    writer: Name
    type: MemoryType
    priority: Priority
    visibility: Visibility
    content: str | None = None
    metadata: dict[str, Any] | None = None
    tags: list[Label] | None = None
    context: Label | None = None
    source: Label | None = None
    seq: int = Field(ge=1, lt=_LARGEST)
    rev: int = Field(ge=1, lt=_LARGEST)
    occurred_at: Time | None = None
    created_at: Time
    updated_at: Time
    expires_at: Time | None = None
    cut: str | None = Field(default=None, description="stands for how a long content was cut for its vectors")
    vectors: list[Base64] | None = None
    sealed: SealedPart | None = None


class Via(Line):
    """What a grant passes on under its parent grant."""

    parent: Id
    tokens: list[Token] = Field(min_length=1)
    since: Time
    until: Time | None = None


class GrantLine(Line):
    """A grant in force. It never ends if `until` is absent."""

    kind: Literal["grant"] = "grant"
    id: Id
    grantor: Name
    grantor_owner: Id
    grantee: Name
    grantee_owner: Id
    permission: Literal["read", "write"]
    selects: Literal["i", "c", "t", "y"]
    values: list[str] = Field(min_length=1, max_length=100)
    selector: str = Field(pattern="^[0-9a-f]{32}$")
    note: str | None = None
    at: Time
    since: Time
    until: Time | None = None
    tokens: list[Token] = []
    via: list[Via] | None = None


class End(Line):
    """The last line: the number of lines of each kind and, with a key, the signature of the lines before it.

    A file without it is incomplete.
    """

    kind: Literal["end"] = "end"
    agents: int
    quarantine: int
    memories: int
    grants: int
    key: str | None = Field(default=None, pattern="^[0-9a-f]{16}$", description="id of the key that signed the file")
    mac: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


AnyLine = Header | AgentLine | QuarantineLine | MemoryLine | GrantLine | End
_LINES: TypeAdapter[AnyLine] = TypeAdapter(Annotated[AnyLine, Field(discriminator="kind")])
ORDER = (FORMAT, "agent", "quarantine", "memory", "grant", "end")


def read_json(raw: bytes) -> Any:
    """Read the JSON of a line. Raises ValueError if it is not JSON, or has too many values."""
    if has_too_many_values(raw, _MAX_TOKENS):
        raise ValueError("it has too many JSON values")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None


def parse(raw: bytes) -> AnyLine:
    """Read a line.

    Raises:
        ValueError: it is not valid. The message says where, without quoting the line.
    """
    values = read_json(raw)
    try:
        return _LINES.validate_python(values)
    except ValidationError as error:
        raise ValueError(reasons(error)) from None


def reasons(error: ValidationError) -> str:
    """Describe what is wrong with a record, without quoting from it."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'][-3:])) or 'it'}: {one['msg']}" for one in found[:3])


def position(line: AnyLine) -> tuple[int, str]:
    """Return the place of a line in the order of a file."""
    match line:
        case MemoryLine():
            key = line.id
        case GrantLine():
            key = f"{int(bool(line.via))}{line.id}"
        case AgentLine() | QuarantineLine():
            key = line.name
        case _:
            key = ""
    return ORDER.index(line.kind), key


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a line, which schemas/export.json contains."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://redis-memory-gpu.invalid/schemas/export.json",
        "title": "Export line",
        "description": "A line of an export file; docs/moving-data.md says in which order they come.",
        **_LINES.json_schema(),
    }
