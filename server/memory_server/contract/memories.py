"""Answers of the memory and search tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from memory_core.records.memory import MemoryType, Priority, Record, Visibility
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.times import to_iso
from memory_server.contract.answer import Answer
from memory_server.contract.untrusted_text import NOTE, counted, decimal, framed, quoted, word
from memory_server.contract.wording import lifetime, minute, moment, period

Milliseconds = Annotated[float, AfterValidator(lambda value: round(value, 2))]
Score = Annotated[float, AfterValidator(lambda value: round(value, 4))]
VectorState = Literal["ready", "pending", "failed"]
Trust = Literal["own", "received", "granted", "shared", "public"]


class Memory(BaseModel):
    """One memory, or a piece of a long one. Times are ISO 8601 in UTC; `expires_at` is null for never."""

    memory_id: str
    content: str
    memory_type: MemoryType
    priority: Priority
    visibility: Visibility
    writer: str = Field(description="agent that wrote its content")
    trust: Trust = Field(
        description="own: you wrote it; received: yours, by another's hand; granted: others show it to you; "
        "shared: written for you, such as a result; public: anyone here may have written it"
    )
    granted_by: list[str] | None = Field(default=None, description="agents whose grants show it")
    tags: list[str] = []
    context: str | None = None
    source: str | None = None
    metadata: dict[str, Any] | None = None
    occurred_at: str | None = None
    created_at: str
    updated_at: str
    expires_at: str | None = None
    rev: int
    seq: int | None = Field(default=None, description="order within your context; of your own memories only")
    vector: VectorState
    sensitive: bool = Field(default=False, description="encrypted in Redis")
    pieces: int = Field(default=1, description="number of pieces of a long content; retrieve_memory returns all")

    @classmethod
    def of(cls, record: Record, principal: Principal, model: Model) -> Memory:
        """Build a principal's view of a record; `model` is the current one."""
        grantors = principal.grantors_of(record)
        return cls(
            memory_id=record.id,
            content=record.content,
            memory_type=record.type,
            priority=record.priority,
            visibility=record.visibility,
            writer=record.writer,
            trust=_trust(record, principal, bool(grantors)),
            granted_by=grantors or None,
            tags=list(record.tags),
            context=record.context,
            source=record.source,
            metadata=json.loads(record.metadata) if record.metadata else None,
            occurred_at=to_iso(record.occurred_at),
            created_at=to_iso(record.created_at) or "",
            updated_at=to_iso(record.updated_at) or "",
            expires_at=to_iso(record.expires_at),
            rev=record.rev,
            seq=record.seq if principal.owns(record.owner) else None,
            vector=_vector_state(model, record.state),
            sensitive=record.is_sensitive,
            pieces=record.chunks,
        )

    def without_texts(self) -> Memory:
        """Return the view for a caller that may change it but not read it."""
        texts = {"content": "", "tags": [], "context": None, "source": None, "metadata": None}
        return self.model_copy(update=texts)

    def begun(self, chars: int) -> Memory:
        """Return the view with at most so many characters of the content."""
        cut = len(self.content) > chars
        return self.model_copy(update={"content": f"{self.content[:chars]}…"}) if cut else self

    def labels(self, *, whole: bool = False) -> list[str]:
        """Return what describes it, each with its name; `whole` includes what its owner may change."""
        named = (("source", self.source), ("context", self.context))
        labels = [
            self.memory_type,
            *([moment(self.occurred_at)] if self.occurred_at else []),
            *(f"{name} {word(label)}" for name, label in named if label),
            f"by {self.writer} ({self.access()})",
            *(["sensitive"] if self.sensitive else []),
        ]
        return [*labels, *self._details()] if whole else labels

    def access(self) -> str:
        """Say why the caller may read it; for a memory of the caller, say who else may."""
        if self.trust in ("own", "received"):
            return f"{self.trust}, {self.visibility}"
        others = [name for name in self.granted_by or () if name != self.writer]
        return f"granted by {', '.join(others)}" if self.trust == "granted" and others else self.trust

    def _details(self) -> list[str]:
        tags = [f"tags {', '.join(map(word, self.tags))}"] if self.tags else []
        ends = [lifetime(self.expires_at)] if self.trust in ("own", "received") or self.expires_at else []
        vector = [] if self.vector == "ready" else [f"vector {self.vector}"]
        return [self.priority, *tags, *ends, f"rev {self.rev}", *vector]

    def lines(self, head: str = "") -> list[str]:
        """Return a heading, after `head`, and the framed content."""
        return [f"{head}{self.heading()}", *framed(self.content)]

    def heading(self, before: Sequence[str] = (), *, whole: bool = False) -> str:
        return _heading(self.memory_id, before, self.labels(whole=whole))


def _heading(memory_id: str, before: Sequence[str], labels: Sequence[str]) -> str:
    return " ".join([f"[{memory_id}]", *before, " · ".join(labels)]).rstrip()


def entries(memories: Sequence[Memory], scores: Sequence[str] = (), pieces: Sequence[str] = ()) -> list[str]:
    """Return the lines of several memories. Labels that are the same for all are named once."""
    labels = [memory.labels(whole=not scores) for memory in memories]
    same = [label for label in labels[0] if all(label in one for one in labels)] if len(labels) > 1 else []
    lines = [f"All: {' · '.join(same)}"] if same else []
    for number, memory in enumerate(memories):
        own = [label for label in labels[number] if label not in same] + [
            one for one in pieces[number : number + 1] if one
        ]
        lines += [_heading(memory.memory_id, scores[number : number + 1], own), *framed(memory.content)]
    return lines


def _trust(record: Record, principal: Principal, granted: bool) -> Trust:
    if principal.owns(record.owner):
        return "own" if record.writer == principal.agent else "received"
    if granted:
        return "granted"
    return "public" if record.visibility is Visibility.PUBLIC else "shared"


_BEGINNING = 40
"""Characters of a similar memory in the text of a store's answer."""


class Similar(BaseModel):
    """A memory similar to a new one."""

    memory_id: str
    score: Score
    content: str = Field(description="beginning of its content")
    own: bool = Field(default=False, description="yours: update_memory changes it")

    def line(self) -> str:
        advice = " – yours; if it is the same fact, update_memory with this id." if self.own else ""
        return f"Similar: [{self.memory_id}] {decimal(self.score)} {self.beginning()}{advice}"

    def beginning(self) -> str:
        """Return a few words of it, quoted."""
        words = " ".join(self.content[: 4 * _BEGINNING].split())
        return quoted(words if len(words) <= _BEGINNING else words[: _BEGINNING - 1] + "…")


class Secrets(BaseModel):
    """What looks like a credential in a memory, and what the setting `secrets` did about it."""

    kinds: list[str]
    action: Literal["stored", "redacted", "encrypted"]
    encryptable: SkipJsonSchema[bool] = Field(default=True, exclude=True)
    """Whether this server has a master key."""

    def line(self) -> str:
        encrypt = " or store it with sensitive=true" if self.encryptable else ""
        done = {
            "stored": f"it is stored as written. If it is a secret, delete it{encrypt}",
            "redacted": "the memory is stored with [redacted] in its place",
            "encrypted": "the memory is stored as sensitive",
        }
        return f"Looks like a credential ({', '.join(self.kinds)}): {done[self.action]}."


_NAMED = 20
"""Ids that the text of a deletion names of each kind."""
UNDERSTOOD = "the filter as it was understood"
LEVELS = "how durable the write is: memory, aof, aof-everysec, aof-always, synced, synced+1 replica"
UNCONFIRMED = "why more is not confirmed although the call waited for it; the write is done"


def not_confirmed(why: str) -> str:
    return f"It is written, but not confirmed on every disk that it should be on: {why}."


class StoreAnswer(Answer):
    """A stored memory."""

    memory_id: str
    vector: VectorState
    visibility: Visibility
    expires_at: str | None = None
    durability: str = Field(description=LEVELS)
    unconfirmed: str | None = Field(default=None, description=UNCONFIRMED)
    duplicate_of: str | None = Field(default=None, description="your earlier memory with exactly this content")
    similar: list[Similar] = Field(default_factory=list[Similar])
    secrets: Secrets | None = None
    replayed: bool = Field(default=False, description="true: this idempotency_key had stored it before")
    quarantined: bool = Field(default=False, description="true: an administrator hides your memories from others")

    def shown(self) -> list[str]:
        return [self.memory_id, *(near.memory_id for near in self.similar)]

    def lines(self) -> list[str]:
        visibility = "shared with those you grant it" if self.visibility == Visibility.SHARED else self.visibility
        waits = "" if self.vector == "ready" else f" Its vector is {self.vector}: words find it, meaning does not yet."
        lines = [f"Stored [{self.memory_id}] ({visibility}, {lifetime(self.expires_at)}).{waits}"]
        if self.replayed:
            lines.append("This idempotency_key had stored it before; nothing new was stored.")
        if self.unconfirmed:
            lines.append(not_confirmed(self.unconfirmed))
        if self.quarantined:
            lines.append("You are in quarantine: other agents cannot see it until an administrator lifts that.")
        if self.duplicate_of:
            lines.append(f"It repeats [{self.duplicate_of}] exactly.")
        if self.secrets:
            lines.append(self.secrets.line())
        lines += [near.line() for near in self.similar]
        return lines


class MemoryAnswer(Answer):
    """One memory, or a page of its content."""

    has_own_limit = True

    memory: Memory
    chunks: str | None = Field(default=None, description="which chunks of a long content these are")
    next_cursor: str | None = None
    access_count: int = Field(default=0, description="of your own memories only")
    last_access: str | None = None

    def shown(self) -> list[str]:
        return [self.memory.memory_id]

    def lines(self) -> list[str]:
        memory = self.memory
        metadata = [f"metadata {quoted(memory.metadata)}"] if memory.metadata else []
        last = f", last {minute(self.last_access)}" if self.last_access else ""
        used = [f"read {counted(self.access_count, 'time')} before{last}"] if self.access_count else []
        pieces = [f"{memory.pieces} chunks"] if memory.pieces > 1 else []
        heading = " · ".join([memory.heading(whole=True), *pieces, *metadata, *used])
        page = [f"Chunks {self.chunks}."] if self.chunks else []
        more = [f"More: cursor={self.next_cursor}"] if self.next_cursor else []
        return [NOTE, heading, *framed(memory.content), *([" ".join([*page, *more])] if page or more else [])]


class UpdateAnswer(MemoryAnswer):
    """A memory after a change."""

    durability: str = Field(description=LEVELS)
    unconfirmed: str | None = Field(default=None, description=UNCONFIRMED)
    secrets: Secrets | None = None

    def lines(self) -> list[str]:
        notes = [not_confirmed(self.unconfirmed)] if self.unconfirmed else []
        return [f"Updated {self.memory.heading(whole=True)}", *notes, *([self.secrets.line()] if self.secrets else [])]


class MemoryListAnswer(Answer):
    """A page of memories, newest first."""

    has_own_limit = True

    memories: list[Memory]
    next_cursor: str | None = None
    total: int
    since: str | None = Field(default=None, description=UNDERSTOOD)
    until: str | None = Field(default=None, description=UNDERSTOOD)

    def shown(self) -> list[str]:
        return [memory.memory_id for memory in self.memories]

    def lines(self) -> list[str]:
        total, when = counted(self.total, "memory"), period(self.since, self.until)
        if not self.memories:
            return [
                f"No memories listed{when}; {counted(self.total, 'matches', 'match')}."
                if self.total
                else f"No memories found{when}."
            ]
        more = [f"More: cursor={self.next_cursor}"] if self.next_cursor else []
        return [f"{len(self.memories)} of {total}{when}. {NOTE}", *entries(self.memories), *more]


class ClearAnswer(Answer):
    """The numbers of matched and removed memories."""

    matched: int
    deleted: int
    dry_run: bool = False
    not_yours: list[str] | None = Field(default=None, description="those named that you read but do not own")
    unknown: int | None = Field(default=None, description="number of the ids that name no memory that you may read")
    since: str | None = Field(default=None, description=UNDERSTOOD)
    until: str | None = Field(default=None, description=UNDERSTOOD)

    def lines(self) -> list[str]:
        deleted, when = counted(self.deleted, "memory"), period(self.since, self.until)
        left = f"; {self.matched} matched" if self.matched != self.deleted else ""
        if self.dry_run:
            done = f"Would delete {counted(self.matched, 'memory')}{when} (dry run)."
        elif self.matched:
            done = f"Deleted {deleted}{when}{left}."
        else:
            done = f"Nothing deleted: no memory of yours matches{when}."
        not_yours = self.not_yours or []
        others = [f"[{one}] belongs to another agent; only its owner can delete it." for one in not_yours[:_NAMED]]
        more = (
            [f"{counted(len(not_yours) - _NAMED, 'more belongs', 'more belong')} to others."]
            if len(not_yours) > _NAMED
            else []
        )
        unknown = [f"Not found: {counted(self.unknown, 'id')} of those you gave."] if self.unknown else []
        return [done, *others, *more, *unknown]


class Hit(BaseModel):
    """A found memory. Scores are from 0 to 1; null if that side was not used."""

    memory: Memory
    score: Score
    vector_score: Score | None = None
    keyword_score: Score | None = None
    part: int | None = Field(default=None, description="number from 0 of the piece of a long memory in content")

    def piece(self) -> str:
        """Name the piece of a long memory: `chunk 1/8`."""
        return "" if self.part is None else f"chunk {self.part + 1}/{self.memory.pieces}"


class Took(BaseModel):
    """Milliseconds that each stage of a search took."""

    embed: Milliseconds = 0.0
    search: Milliseconds = 0.0
    rerank: Milliseconds = 0.0
    total: Milliseconds = 0.0


class SearchAnswer(Answer):
    """Found memories, best first."""

    has_own_limit = True

    hits: list[Hit]
    took_ms: Took = Took()
    since: str | None = Field(default=None, description=UNDERSTOOD)
    until: str | None = Field(default=None, description=UNDERSTOOD)

    def shown(self) -> list[str]:
        return [hit.memory.memory_id for hit in self.hits]

    def lines(self) -> list[str]:
        when = period(self.since, self.until)
        if not self.hits:
            return [f"No memories found{when}."]
        found = [hit.memory for hit in self.hits]
        lines = entries(found, [decimal(hit.score) for hit in self.hits], [hit.piece() for hit in self.hits])
        return [f"{counted(len(found), 'memory')}{when}. {NOTE}", *lines]


def _vector_state(model: Model, state: str) -> VectorState:
    if model.is_ready(state):
        return "ready"
    return "failed" if model.has_failed(state) else "pending"
