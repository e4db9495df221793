"""Records of the model: memories, moments and selections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from math import inf
from typing import Any

from memory_server.memories.splitter import split
from memory_server.search.analysis import query_terms, stem, stem_counts

Arguments = dict[str, Any]
Outcome = dict[str, Any] | str

DAY = 86_400
LIFETIMES = {"critical": inf, "high": 90 * DAY, "medium": 30 * DAY, "low": 7 * DAY, "archive": inf}
SLACK = 0.05
"""Seconds by which two clocks of one machine, or times rounded to milliseconds, may differ."""
DEFAULTS = {"memory_type": "context", "priority": "medium", "visibility": "private", "tags": []}
FILTERS = (
    *("agent_ids", "memory_types", "priorities", "tags", "tag_match", "context", "source", "since", "until"),
    "include_archive",
)


@dataclass(frozen=True, slots=True)
class Moment:
    """A time interval in epoch seconds in which something happened."""

    start: float
    end: float

    def holds(self, seconds: float, after: float = 0.0) -> bool:
        """Whether a time lies in the interval shifted by `after` seconds."""
        return self.start + after - SLACK <= seconds <= self.end + after + SLACK


def seconds_of(time: str | float) -> float:
    """Parse an ISO 8601 time (UTC if it has no zone) or epoch seconds."""
    if not isinstance(time, str):
        return float(time)
    moment = datetime.fromisoformat(time)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(slots=True)
class Memory:
    """A memory as its owner should see it.

    `removed` is None if unknown: the memory expired while it was cleared. `seq` is None after such a memory.
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
        """Whether it exists at a moment; None if it expires during it."""
        if self.removed or self.expires_at < moment.start - SLACK:
            return False
        return True if self.removed is False and self.expires_at > moment.end + SLACK else None

    def has_expired(self, moment: Moment) -> bool | None:
        """Whether its lifetime has ended and it is not removed yet."""
        if self.removed or self.expires_at > moment.end + SLACK:
            return False
        return True if self.removed is False and self.expires_at < moment.start - SLACK else None

    def is_readable_by(self, agent: str) -> bool:
        """Whether an agent may read it."""
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


def accepts(arguments: Arguments, memory: Memory) -> bool:
    """Whether a memory matches the filters."""
    tags = arguments.get("tags") or ()
    match = all if arguments.get("tag_match") == "all" else any
    wanted = (
        (arguments.get("agent_ids"), memory.owner),
        (arguments.get("memory_types"), memory.type),
        (arguments.get("priorities"), memory.priority),
        ([arguments["context"]] if arguments.get("context") else None, memory.context),
        ([arguments["source"]] if arguments.get("source") else None, memory.source),
    )
    return (
        all(not allowed or value in allowed for allowed, value in wanted)
        and (not tags or match(tag in memory.tags for tag in tags))
        and ("since" not in arguments or memory.occurred.end >= seconds_of(arguments["since"]))
        and ("until" not in arguments or memory.occurred.start <= seconds_of(arguments["until"]))
        and (
            memory.priority != "archive"
            or arguments.get("include_archive", False)
            or "archive" in (arguments.get("priorities") or ())
        )
    )


def is_backwards(arguments: Arguments) -> bool:
    """Whether `since` is later than `until`."""
    return (
        "since" in arguments
        and "until" in arguments
        and seconds_of(arguments["since"]) > seconds_of(arguments["until"])
    )


@dataclass(frozen=True, slots=True)
class Selected:
    """Memories that must be found and memories that may be found, newest first."""

    memories: list[Memory]
    sure: set[str]

    @classmethod
    def by(cls, judged: Iterable[tuple[Memory, bool | None]]) -> Selected:
        """Select by verdicts, where None means undecided; memories come oldest first."""
        possible = [(memory, verdict) for memory, verdict in judged if verdict is not False][::-1]
        return cls([memory for memory, _ in possible], {memory.id for memory, verdict in possible if verdict})

    def allows(self, number: int) -> bool:
        """Whether a count is possible."""
        return len(self.sure) <= number <= len(self.memories)

    def narrowed(self, ids: Iterable[str]) -> Selected:
        """Keep only the given ids."""
        kept = set(ids)
        return Selected([memory for memory in self.memories if memory.id in kept], self.sure & kept)

    def check_found(self, found: Sequence[str], limit: int) -> None:
        """The hits are selected memories, none twice, and include all required ones if the limit allows."""
        assert len(set(found)) == len(found) <= limit
        assert set(found) <= {memory.id for memory in self.memories}
        assert len(found) == limit or self.sure <= set(found), f"not found: {self.sure - set(found)}"

    def check_listed(self, listed: Sequence[str], limit: int) -> None:
        """The listed memories are the newest of the selection, in order."""
        self.check_found(listed, limit)
        order = [memory.id for memory in self.memories]
        places = [order.index(memory_id) for memory_id in listed]
        assert places == sorted(places), "not newest first"
        passed = order[: places[-1]] if len(listed) == limit else order
        assert self.sure & set(passed) <= set(listed)
