"""Entries of a namespace's event stream, which the Functions write, and positions in that stream."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from memory_core.errors import InvalidArgument, echo
from memory_core.records import redis_time
from memory_core.records.names import SEPARATOR
from memory_core.records.scope import id_token
from memory_core.store.streams import BadMessage, Fields

MEMORY, TASK, GRANT, AGENT = "memory", "task", "grant", "agent"
KINDS = frozenset({MEMORY, TASK, GRANT, AGENT})
LOST = "lost"
"""Kind of an entry that says up to which position events were dropped, and for whom. Nobody receives it."""
DELETED, EMBEDDED = "deleted", "embedded"
_CURSOR = re.compile(r"(\d{1,15})-(\d{1,15})")
_AHEAD_SECONDS = 3600


class Position(NamedTuple):
    """A position in a stream: the id of the last entry read."""

    milliseconds: int
    number: int

    @classmethod
    def of(cls, entry: bytes) -> Position:
        milliseconds, _, number = entry.partition(b"-")
        return cls(int(milliseconds), int(number))

    @property
    def id(self) -> str:
        """The stream id, which is the cursor that callers hold."""
        return f"{self.milliseconds}-{self.number}"


START = Position(0, 0)


def read_cursor(cursor: str) -> Position:
    """Decode a caller's cursor.

    Raises:
        InvalidArgument: it is no cursor, or is in the future, where it would match no event.
    """
    match = _CURSOR.fullmatch(cursor)
    position = Position(*map(int, match.groups())) if match else None
    if position is None or position.milliseconds > (redis_time.now() + _AHEAD_SECONDS) * 1000:
        hint = "send the cursor of the last wait_for_events answer, or leave it out to go on where your last call ended"
        raise InvalidArgument(f"unknown cursor {echo(cursor)}", hint=hint)
    return position


@dataclass(frozen=True, slots=True)
class EventEntry:
    """One event. `scope` has the tokens that make a memory readable; `to` names the agents it is addressed to."""

    position: Position
    kind: str
    op: str
    subject: str
    by: str
    scope: frozenset[str]
    to: frozenset[str]
    piece: int
    has_vector: bool

    @classmethod
    def parse(cls, entry: bytes, fields: Fields) -> EventEntry:
        """Parse an entry that `emit` in the Functions wrote.

        Raises:
            BadMessage: a field is missing or malformed.
        """
        try:
            kind, subject, scope = fields[b"kind"].decode(), fields[b"id"].decode(), _parts(fields[b"scope"])
            return cls(
                position=Position.of(entry),
                kind=kind,
                op=fields[b"op"].decode(),
                subject=subject,
                by=fields[b"by"].decode(),
                scope=scope | {id_token(subject)} if kind == MEMORY and scope else scope,
                to=_parts(fields[b"to"]),
                piece=int(fields.get(b"piece", 0)),
                has_vector=fields.get(b"vector") == b"1",
            )
        except (KeyError, ValueError) as error:
            raise BadMessage(f"event {entry!r}: {error}") from error

    @property
    def lost_to(self) -> Position:
        """The last position that was dropped, for an entry of kind `lost`."""
        return Position.of(self.subject.encode())

    @property
    def uri(self) -> str | None:
        """The resource it is about; grants are not resources."""
        return None if self.kind == GRANT else f"{self.kind}://{self.subject}"

    @property
    def is_news(self) -> bool:
        """Whether it is a change; the arrival of a vector is not, and only serves standing queries."""
        return self.op != EMBEDDED

    def is_for(self, agent: str) -> bool:
        """Whether an event that is not about a memory may be seen by an agent."""
        return agent in self.to or (self.kind == AGENT and not self.to)

    def may_change(self, agent: str) -> bool:
        """Whether it may change what an agent may read."""
        return self.kind in (GRANT, AGENT) and (agent in self.to or agent == self.subject)


def parse_entries(rows: Iterable[tuple[bytes, Fields]]) -> list[EventEntry]:
    """Parse entries, without malformed ones."""
    parsed: list[EventEntry] = []
    for entry, fields in rows:
        with suppress(BadMessage):
            parsed.append(EventEntry.parse(entry, fields))
    return parsed


def _parts(value: bytes) -> frozenset[str]:
    return frozenset(value.decode().split(SEPARATOR)) if value else frozenset()
