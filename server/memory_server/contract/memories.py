"""Answers of the memory and search tools."""

from __future__ import annotations

import json
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from memory_core.records.memory import MemoryType, Priority, Record, Visibility
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.times import to_iso
from memory_server.contract.answer import Answer
from memory_server.contract.untrusted_text import NOTE, counted, framed, quoted

Milliseconds = Annotated[float, AfterValidator(lambda value: round(value, 2))]
Score = Annotated[float, AfterValidator(lambda value: round(value, 4))]
VectorState = Literal["ready", "pending", "failed"]
Trust = Literal["own", "received", "granted", "public"]


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
        "public: anyone here may have written it"
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

    def lines(self, head: str = "") -> list[str]:
        """Return a heading, after `head`, and the framed content."""
        labels = [quoted(label) for label in (self.source, self.context) if label]
        times = [self.occurred_at] if self.occurred_at else []
        origin = ", ".join([self.memory_type, *labels, *times, f"by {self.writer}", self.trust])
        return [f"{head}[{self.memory_id}] ({origin})", *framed(self.content)]


def _trust(record: Record, principal: Principal, granted: bool) -> Trust:
    if principal.owns(record.owner):
        return "own" if record.writer == principal.agent else "received"
    return "granted" if granted else "public"


class Similar(BaseModel):
    """A memory similar to a new one."""

    memory_id: str
    score: Score
    content: str = Field(description="beginning of its content")


class Secrets(BaseModel):
    """What looks like a credential in a memory, and what the setting `secrets` did about it."""

    kinds: list[str]
    action: Literal["stored", "redacted", "encrypted"]

    def line(self) -> str:
        done = {
            "stored": "it is stored as written. If it is a secret, delete it or store it with sensitive=true",
            "redacted": "the memory is stored with [redacted] in its place",
            "encrypted": "the memory is stored as sensitive",
        }
        return f"Looks like a credential ({', '.join(self.kinds)}): {done[self.action]}."


LEVELS = "how durable the write is: memory, aof, aof-everysec, aof-always, synced, synced+1 replica"
UNCONFIRMED = "why more is not confirmed although the call waited for it; the write is done"


def _not_known(why: str) -> str:
    return f"It is written, but not confirmed on every disk that it should be on: {why}."


class StoreAnswer(Answer):
    """A stored memory."""

    memory_id: str
    vector: VectorState
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
        lines = [f"Stored {self.memory_id} (vector {self.vector}, expires {self.expires_at or 'never'})."]
        if self.unconfirmed:
            lines.append(_not_known(self.unconfirmed))
        if self.quarantined:
            lines.append("You are in quarantine: other agents cannot see it until an administrator lifts that.")
        if self.duplicate_of:
            lines.append(f"It repeats {self.duplicate_of} exactly.")
        if self.secrets:
            lines.append(self.secrets.line())
        lines += [f"Similar: [{near.memory_id}] {near.score:.2f} {quoted(near.content)}" for near in self.similar]
        return lines


class MemoryAnswer(Answer):
    """One memory, or a page of its content."""

    memory: Memory
    chunks: str | None = Field(default=None, description="which chunks of a long content these are")
    next_cursor: str | None = None
    access_count: int = Field(default=0, description="of your own memories only")
    last_access: str | None = None

    def shown(self) -> list[str]:
        return [self.memory.memory_id]

    def lines(self) -> list[str]:
        page = f"Chunks {self.chunks}." if self.chunks else ""
        more = f"More: cursor={self.next_cursor}" if self.next_cursor else ""
        return [NOTE, *self.memory.lines(), *([f"{page} {more}".strip()] if page or more else [])]


class UpdateAnswer(MemoryAnswer):
    """A memory after a change."""

    durability: str = Field(description=LEVELS)
    unconfirmed: str | None = Field(default=None, description=UNCONFIRMED)
    secrets: Secrets | None = None

    def lines(self) -> list[str]:
        notes = [_not_known(self.unconfirmed)] if self.unconfirmed else []
        return [*super().lines(), *notes, *([self.secrets.line()] if self.secrets else [])]


class MemoryListAnswer(Answer):
    """A page of memories, newest first."""

    memories: list[Memory]
    next_cursor: str | None = None
    total: int

    def shown(self) -> list[str]:
        return [memory.memory_id for memory in self.memories]

    def lines(self) -> list[str]:
        total = counted(self.total, "memory", "memories")
        head = [f"{len(self.memories)} of {total}.", *([NOTE] if self.memories else [])]
        more = [f"More: cursor={self.next_cursor}"] if self.next_cursor else []
        return [*head, *chain.from_iterable(memory.lines() for memory in self.memories), *more]


class ClearAnswer(Answer):
    """The numbers of matched and removed memories."""

    matched: int
    deleted: int
    dry_run: bool = False

    def lines(self) -> list[str]:
        return [f"{self.matched} matched, {self.deleted} deleted{' (dry run)' if self.dry_run else ''}."]


class Hit(BaseModel):
    """A found memory. Scores are from 0 to 1; null if that side was not used."""

    memory: Memory
    score: Score
    vector_score: Score | None = None
    keyword_score: Score | None = None
    part: int | None = Field(default=None, description="number from 0 of the piece of a long memory in content")


class Took(BaseModel):
    """Milliseconds that each stage of a search took."""

    embed: Milliseconds = 0.0
    search: Milliseconds = 0.0
    rerank: Milliseconds = 0.0
    total: Milliseconds = 0.0


class SearchAnswer(Answer):
    """Found memories, best first."""

    hits: list[Hit]
    took_ms: Took = Took()

    def shown(self) -> list[str]:
        return [hit.memory.memory_id for hit in self.hits]

    def lines(self) -> list[str]:
        if not self.hits:
            return ["No memories found."]
        found = chain.from_iterable(hit.memory.lines(f"{hit.score:.2f} ") for hit in self.hits)
        return [f"{counted(len(self.hits), 'memory', 'memories')}.", NOTE, *found]


def _vector_state(model: Model, state: str) -> VectorState:
    if model.is_ready(state):
        return "ready"
    return "failed" if model.has_failed(state) else "pending"
