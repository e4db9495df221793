"""Listeners: calls, subscriptions and dashboards that wait for events; and the audience of a namespace's stream.

An audience offers its listeners entries by their cached permissions. That is a first filter, which must never drop too
much: the code that takes an entry out checks current permissions.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from memory_core.errors import QuotaExceeded
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix
from memory_server.events.entries import AGENT, KINDS, LOST, MEMORY, EventEntry, Position

_MAX_QUEUED = 5000
_ROUNDING = 1e-4


class Listener:
    """Waits to be woken, for an agent, which may have `most` listeners of the kind at a time."""

    most = 0

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.closed = False
        self._awake = asyncio.Event()

    def wake(self) -> None:
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

    most = 32

    def __init__(
        self,
        agent: str,
        kinds: frozenset[str],
        query: Matrix | None = None,
        min_cosine: float = 0.0,
        model: Model | None = None,
        since: float = 0.0,
    ) -> None:
        super().__init__(agent)
        self.since = since
        """When the agent took over its name (epoch seconds); earlier events were for another holder."""
        self.kinds = kinds
        self.query = query
        self.model = model
        self.min_cosine = min_cosine
        """No memory with a lower cosine matches; the others are scored when they are taken out."""
        self.tokens: frozenset[str] = frozenset()
        self.doubts = 1
        """How often its permissions may have changed; `tokens` covers the first `trusted` of these changes."""
        self.trusted = 0
        self.queue: deque[EventEntry] = deque()
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

    def doubt(self, entry: EventEntry) -> None:
        """Mark the tokens as stale if an event may have changed them."""
        if entry.may_change(self.agent):
            self.doubts += 1

    def may_read(self, entry: EventEntry) -> bool:
        """Whether the memory of an event may be readable."""
        return self.is_stale or not self.tokens.isdisjoint(entry.scope)

    def concerns(self, entry: EventEntry) -> bool:
        """Whether an entry may be for it. Its own actions are not."""
        if entry.by and entry.by == self.agent:
            return False
        if entry.kind == MEMORY:
            is_match = entry.has_vector and self.query is not None
            return (is_match or (entry.is_news and MEMORY in self.kinds)) and self.may_read(entry)
        return entry.kind in self.kinds and self.is_for(entry)

    def is_for(self, entry: EventEntry) -> bool:
        """Whether it may see an entry that is not about a memory."""
        return entry.is_for(self.agent) and entry.position.milliseconds >= self.since * 1000

    def offer(self, entry: EventEntry) -> None:
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

    def __init__(self, agent: str, *, sees_all: bool, since: float) -> None:
        super().__init__(agent, KINDS, since=since)
        self.sees_all = sees_all

    def concerns(self, entry: EventEntry) -> bool:
        if entry.kind == LOST:
            return False
        if self.sees_all or entry.kind != MEMORY:
            return entry.is_news and (self.sees_all or self.is_for(entry))
        return entry.is_news and self.may_read(entry)


class Follower(Listener):
    """A subscription to resources: only the last change of each counts."""

    most = 1024

    def __init__(self, agent: str, uris: frozenset[str]) -> None:
        super().__init__(agent)
        self.uris = uris
        self._changed: dict[str, EventEntry] = {}

    def offer(self, entry: EventEntry) -> None:
        self._changed[entry.uri or ""] = entry
        self.wake()

    def take(self) -> list[EventEntry]:
        """Return and forget the changes since the last call."""
        changed, self._changed = self._changed, {}
        return list(changed.values())


@dataclass(frozen=True, slots=True)
class _Queries:
    """The standing queries that one model embedded; `rows` has shape (waiters, dimension), None if there are none."""

    model: Model
    waiters: list[Waiter]
    rows: Matrix | None


class Audience:
    """The listeners of one namespace, and how far its stream was read for them."""

    def __init__(self, position: Position) -> None:
        self.position = position
        self._all: set[Listener] = set()
        self._numbers: Counter[tuple[type[Listener], str]] = Counter()
        self._waiters: set[Waiter] = set()
        self._followers: defaultdict[str, set[Follower]] = defaultdict(set)
        self._by_agent: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._by_token: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._stale: set[Waiter] = set()
        self._watching: set[Waiter] = set()
        self.with_query: list[Waiter] = []
        """Waiters with a standing query."""
        self._queries: _Queries | None = None

    def __len__(self) -> int:
        return len(self._all)

    def add(self, listener: Waiter | Follower) -> None:
        """Add a listener; raises QuotaExceeded if its agent has too many."""
        kind = type(listener), listener.agent
        if self._numbers[kind] >= listener.most:
            message = f"{listener.most} calls of yours wait or follow already, the limit for one agent"
            raise QuotaExceeded(message, hint="end some of them first", retry_after=5.0)
        self._numbers[kind] += 1
        self._all.add(listener)
        if isinstance(listener, Follower):
            for uri in listener.uris:
                self._followers[uri].add(listener)
            return
        self._waiters.add(listener)
        if listener.sees_all:
            self._watching.add(listener)
        self._by_agent[listener.agent].add(listener)
        if listener.query is not None:
            self.with_query.append(listener)
            self._queries = None
        self._index_tokens(listener)

    def remove(self, listener: Waiter | Follower) -> None:
        self._all.discard(listener)
        self._numbers[type(listener), listener.agent] -= 1
        if isinstance(listener, Follower):
            for uri in listener.uris:
                _drop(self._followers, uri, listener)
            return
        self._waiters.discard(listener)
        self._watching.discard(listener)
        self._stale.discard(listener)
        _drop(self._by_agent, listener.agent, listener)
        for token in listener.tokens:
            _drop(self._by_token, token, listener)
        if listener in self.with_query:
            self.with_query.remove(listener)
            self._queries = None

    def trust(self, waiter: Waiter, tokens: Iterable[str], doubts: int) -> None:
        """Store the tokens of a waiter that were resolved when it had so many doubts."""
        if waiter in self._waiters:
            for token in waiter.tokens:
                _drop(self._by_token, token, waiter)
        waiter.trust(tokens, doubts)
        if waiter in self._waiters:
            self._index_tokens(waiter)

    def close(self) -> None:
        for listener in self._all:
            listener.close()

    def lose(self) -> None:
        """Mark all waiters: entries may have been lost."""
        for waiter in self._waiters:
            waiter.lose()

    def ask(self, waiter: Waiter, query: Matrix, model: Model) -> None:
        """Replace the standing query of a waiter by its vector from another model."""
        waiter.query, waiter.model, self._queries = query, model, None

    def near(self, vector: Matrix, model: Model) -> set[Waiter]:
        """Find the waiters whose standing query is close to a vector of a model, shape (dimension,).

        Waiters whose query is of another model are included: they compare themselves.
        """
        if self._queries is None or self._queries.model != model:
            known = [waiter for waiter in self.with_query if waiter.query is not None and waiter.model == model]
            rows = np.stack([waiter.query for waiter in known if waiter.query is not None]) if known else None
            self._queries = _Queries(model, known, rows)
        queries = self._queries
        near = set(self.with_query).difference(queries.waiters)
        if queries.rows is not None:
            scored = zip(queries.waiters, queries.rows @ vector, strict=True)
            near |= {waiter for waiter, score in scored if score >= waiter.min_cosine - _ROUNDING}
        return near

    def offer(self, entry: EventEntry, near: set[Waiter] | None) -> None:
        """Offer an entry to the listeners it may concern; `near` has the waiters it matches, None if unknown."""
        self.position = max(self.position, entry.position)
        if entry.kind == LOST:  # nobody who listens has missed anything
            return
        self._doubt(entry)
        for waiter in self._concerned(entry, near) | self._watching:
            if waiter.concerns(entry):
                waiter.offer(entry)
        if entry.piece == 0 and entry.uri in self._followers:
            for follower in self._followers[entry.uri]:
                follower.offer(entry)

    def _doubt(self, entry: EventEntry) -> None:
        for waiter in {waiter for name in (*entry.to, entry.subject) for waiter in self._by_agent.get(name, ())}:
            waiter.doubt(entry)
            self._index_tokens(waiter)

    def _concerned(self, entry: EventEntry, near: set[Waiter] | None) -> set[Waiter]:
        if entry.kind == MEMORY:
            asking: set[Waiter] = set() if not entry.has_vector else set(self.with_query) if near is None else near
            if not entry.is_news:
                return asking
            readers = {waiter for token in entry.scope for waiter in self._by_token.get(token, ())} | self._stale
            return {waiter for waiter in readers if MEMORY in waiter.kinds} | asking
        if entry.kind == AGENT and not entry.to:
            return self._waiters
        return {waiter for name in entry.to for waiter in self._by_agent.get(name, ())}

    def _index_tokens(self, waiter: Waiter) -> None:
        if waiter.is_stale:
            self._stale.add(waiter)
            return
        self._stale.discard(waiter)
        for token in waiter.tokens:
            self._by_token[token].add(waiter)


def _drop(index: defaultdict[str, set[Waiter]] | defaultdict[str, set[Follower]], key: str, item: Hashable) -> None:
    found = index.get(key)
    if found:
        found.discard(item)  # pyright: ignore[reportArgumentType] - the two kinds of set differ in nothing here
        if not found:
            del index[key]
