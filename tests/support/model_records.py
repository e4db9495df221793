"""What the model remembers: memories, moments, and which memories a selection may hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from math import inf
from typing import Any

from memory_server.memories.splitter import split
from memory_server.search.analysis import query_terms, stem, stem_counts

Said = dict[str, Any]
Outcome = dict[str, Any] | str

DAY = 86_400
LIFETIMES = {"critical": inf, "high": 90 * DAY, "medium": 30 * DAY, "low": 7 * DAY, "archive": inf}
SLACK = 0.05
"""Seconds by which two clocks of one machine, and times shown in milliseconds, may seem to differ."""
DEFAULTS = {"memory_type": "context", "priority": "medium", "visibility": "private", "tags": []}
FILTERS = (
    *("agent_ids", "memory_types", "priorities", "tags", "tag_match", "context", "source", "since", "until"),
    "include_archive",
)


@dataclass(frozen=True, slots=True)
class Moment:
    """Something happened between two points in time, in epoch seconds."""

    start: float
    end: float

    def holds(self, seconds: float, after: float = 0.0) -> bool:
        """Whether a time may be the one of what happened, `after` seconds later."""
        return self.start + after - SLACK <= seconds <= self.end + after + SLACK


def seconds_of(said: str | float) -> float:
    """Read an ISO 8601 time, without zone in UTC, or epoch seconds."""
    if not isinstance(said, str):
        return float(said)
    moment = datetime.fromisoformat(said)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(slots=True)
class Memory:
    """A memory as its owner should find it.

    `removed` is None where nobody can tell: it expired as it was cleared. So is `seq`, where it followed such a doubt.
    """

    id: str
    owner: str
    content: str
    type: str
    priority: str
    visibility: str
    tags: tuple[str, ...]
    context: str | None
    source: str | None
    metadata: dict[str, Any] | None
    occurred: Moment
    expires_at: float
    seq: int | None
    rev: int = 1
    removed: bool | None = False

    def lives(self, moment: Moment) -> bool | None:
        """Whether it is there at a moment; None where it expires just then."""
        if self.removed or self.expires_at < moment.start - SLACK:
            return False
        return True if self.removed is False and self.expires_at > moment.end + SLACK else None

    def has_expired(self, moment: Moment) -> bool | None:
        """Whether it is past its lifetime but not removed yet."""
        if self.removed or self.expires_at > moment.end + SLACK:
            return False
        return True if self.removed is False and self.expires_at < moment.start - SLACK else None

    def is_readable_by(self, agent: str) -> bool:
        """Whether an agent may see it."""
        return self.owner == agent or self.visibility == "public"

    def holds_a_word_of(self, query: str) -> bool:
        """Whether a keyword search for the query finds it."""
        mine = stem_counts(self.content, self.source)
        return any(stem(word) in mine for word in query_terms(query))

    @property
    def pieces(self) -> list[str]:
        """The texts that are searched."""
        return _split(self.content)


_split = lru_cache(split)


def accepts(said: Said, memory: Memory) -> bool:
    """Whether filters let a memory through."""
    tags = said.get("tags") or ()
    match = all if said.get("tag_match") == "all" else any
    wanted = (
        (said.get("agent_ids"), memory.owner),
        (said.get("memory_types"), memory.type),
        (said.get("priorities"), memory.priority),
        ([said["context"]] if said.get("context") else None, memory.context),
        ([said["source"]] if said.get("source") else None, memory.source),
    )
    return (
        all(not allowed or value in allowed for allowed, value in wanted)
        and (not tags or match(tag in memory.tags for tag in tags))
        and ("since" not in said or memory.occurred.end >= seconds_of(said["since"]))
        and ("until" not in said or memory.occurred.start <= seconds_of(said["until"]))
        and (
            memory.priority != "archive"
            or said.get("include_archive", False)
            or "archive" in (said.get("priorities") or ())
        )
    )


def is_backwards(said: Said) -> bool:
    """Whether `since` lies after `until`."""
    return "since" in said and "until" in said and seconds_of(said["since"]) > seconds_of(said["until"])


@dataclass(frozen=True, slots=True)
class Selected:
    """Memories that must be found and those that may be, all of them newest first."""

    memories: list[Memory]
    sure: set[str]

    @classmethod
    def by(cls, judged: Iterable[tuple[Memory, bool | None]]) -> Selected:
        """Select by verdicts, of which None is undecided; memories come oldest first."""
        possible = [(memory, verdict) for memory, verdict in judged if verdict is not False][::-1]
        return cls([memory for memory, _ in possible], {memory.id for memory, verdict in possible if verdict})

    def allows(self, number: int) -> bool:
        """Whether a count fits."""
        return len(self.sure) <= number <= len(self.memories)

    def narrowed(self, ids: Iterable[str]) -> Selected:
        """Keep some of it."""
        kept = set(ids)
        return Selected([memory for memory in self.memories if memory.id in kept], self.sure & kept)

    def check_found(self, found: Sequence[str], limit: int) -> None:
        """What was found, in any order, holds nothing else, nothing twice, and all if there was room for it."""
        assert len(set(found)) == len(found) <= limit
        assert set(found) <= {memory.id for memory in self.memories}
        assert len(found) == limit or self.sure <= set(found), f"not found: {self.sure - set(found)}"

    def check_listed(self, listed: Sequence[str], limit: int) -> None:
        """What was listed is the newest of it, in order."""
        self.check_found(listed, limit)
        order = [memory.id for memory in self.memories]
        places = [order.index(memory_id) for memory_id in listed]
        assert places == sorted(places), "not newest first"
        passed = order[: places[-1]] if len(listed) == limit else order
        assert self.sure & set(passed) <= set(listed)
