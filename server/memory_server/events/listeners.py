"""Listeners: calls, subscriptions and dashboards that wait for events.

The hub offers them entries by their cached permissions. That is a first filter, which must never drop too much: the
code that takes an entry out checks current permissions.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from memory_core.records.model import Model
from memory_core.records.vectors import Matrix
from memory_server.events.entries import KINDS, MEMORY, Entry

_MAX_QUEUED = 5000


class Listener:
    """Waits to be woken."""

    def __init__(self) -> None:
        self.closed = False
        self._awake = asyncio.Event()

    def wake(self) -> None:
        """Make `wait` return."""
        self._awake.set()

    def close(self) -> None:
        """End the waiting: no more entries come."""
        self.closed = True
        self.wake()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait to be woken; False if the time ran out."""
        try:
            async with asyncio.timeout(seconds):
                await self._awake.wait()
        except TimeoutError:
            return False
        self._awake.clear()
        return True


class Waiter(Listener):
    """One call that waits for events of some kinds, or for memories close to a query."""

    def __init__(
        self,
        agent: str,
        kinds: frozenset[str],
        query: Matrix | None = None,
        min_score: float = 0.0,
        model: Model | None = None,
    ) -> None:
        super().__init__()
        self.agent = agent
        self.kinds = kinds
        self.query = query
        self.model = model
        self.min_score = min_score
        self.tokens: frozenset[str] = frozenset()
        self.doubts = 1
        """How often its permissions may have changed; `tokens` covers the first `trusted` of these changes."""
        self.trusted = 0
        self.queue: deque[Entry] = deque()
        self.overflown = False
        self.sees_all = False
        """Whether it receives every event of the namespace."""

    @property
    def is_stale(self) -> bool:
        """Whether `tokens` may be incomplete."""
        return self.trusted < self.doubts

    def trust(self, tokens: Iterable[str], doubts: int) -> None:
        """Store tokens that were resolved when there were so many doubts."""
        self.tokens, self.trusted = frozenset(tokens), doubts

    def doubt(self, entry: Entry) -> None:
        """Mark the tokens as stale if an event may have changed them."""
        if entry.may_change(self.agent):
            self.doubts += 1

    def may_read(self, entry: Entry) -> bool:
        """Whether the memory of an event may be readable."""
        return self.is_stale or not self.tokens.isdisjoint(entry.scope)

    def concerns(self, entry: Entry) -> bool:
        """Whether an entry may be for it. Its own actions are not."""
        if entry.by and entry.by == self.agent:
            return False
        if entry.kind == MEMORY:
            is_match = entry.has_vector and self.query is not None
            return (is_match or (entry.is_news and MEMORY in self.kinds)) and self.may_read(entry)
        return entry.kind in self.kinds and entry.is_for(self.agent)

    def offer(self, entry: Entry) -> None:
        """Queue an entry. If the queue is full, it is dropped and the stream is read instead."""
        if len(self.queue) < _MAX_QUEUED and not self.overflown:
            self.queue.append(entry)
        else:
            self.lose()
        self.wake()

    def lose(self) -> None:
        """Mark entries as possibly lost."""
        self.queue.clear()
        self.overflown = True
        self.wake()


class Watcher(Waiter):
    """The live feed of a dashboard: an agent also sees its own actions, an operator sees all events."""

    def __init__(self, agent: str, *, sees_all: bool) -> None:
        super().__init__(agent, KINDS)
        self.sees_all = sees_all

    def concerns(self, entry: Entry) -> bool:
        if self.sees_all or entry.kind != MEMORY:
            return entry.is_news and (self.sees_all or entry.is_for(self.agent))
        return entry.is_news and self.may_read(entry)


class Follower(Listener):
    """A subscription to resources: only the last change of each counts."""

    def __init__(self, uris: frozenset[str]) -> None:
        super().__init__()
        self.uris = uris
        self._changed: dict[str, Entry] = {}

    def offer(self, entry: Entry) -> None:
        self._changed[entry.uri or ""] = entry
        self.wake()

    def take(self) -> list[Entry]:
        """Return and forget the changes since the last call."""
        changed, self._changed = self._changed, {}
        return list(changed.values())
