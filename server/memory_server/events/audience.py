"""Finds the listeners of a namespace that may be concerned by an event."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from memory_core.records.model import Model
from memory_core.records.vectors import Matrix
from memory_server.events.entries import AGENT, MEMORY, Entry, Position
from memory_server.events.listeners import Follower, Listener, Waiter

_ROUNDING = 1e-4


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
        self._waiters: set[Waiter] = set()
        self._followers: defaultdict[str, set[Follower]] = defaultdict(set)
        self._by_agent: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._by_token: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._stale: set[Waiter] = set()
        self._watching: set[Waiter] = set()
        self._asking: list[Waiter] = []
        self._queries: _Queries | None = None

    def __len__(self) -> int:
        return len(self._all)

    @property
    def has_queries(self) -> bool:
        """Whether a listener has a standing query."""
        return bool(self._asking)

    def add(self, listener: Waiter | Follower) -> None:
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
            self._asking.append(listener)
            self._queries = None
        self._index_tokens(listener)

    def remove(self, listener: Waiter | Follower) -> None:
        self._all.discard(listener)
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
        if listener in self._asking:
            self._asking.remove(listener)
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
        """End all waits."""
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
            known = [waiter for waiter in self._asking if waiter.query is not None and waiter.model == model]
            rows = np.stack([waiter.query for waiter in known if waiter.query is not None]) if known else None
            self._queries = _Queries(model, known, rows)
        queries = self._queries
        near = set(self._asking).difference(queries.waiters)
        if queries.rows is not None:
            scored = zip(queries.waiters, queries.rows @ vector, strict=True)
            near |= {waiter for waiter, score in scored if score >= waiter.min_score - _ROUNDING}
        return near

    def offer(self, entry: Entry, near: set[Waiter] | None) -> None:
        """Offer an entry to the listeners it may concern; `near` has the waiters it matches, None if unknown."""
        self.position = max(self.position, entry.position)
        self._doubt(entry)
        for waiter in self._concerned(entry, near) | self._watching:
            if waiter.concerns(entry):
                waiter.offer(entry)
        if entry.piece == 0 and entry.uri in self._followers:
            for follower in self._followers[entry.uri]:
                follower.offer(entry)

    def _doubt(self, entry: Entry) -> None:
        if entry.op == "unregistered":
            named = self._waiters
        else:
            named = {waiter for name in (*entry.to, entry.subject) for waiter in self._by_agent.get(name, ())}
        for waiter in named:
            waiter.doubt(entry)
            self._index_tokens(waiter)

    def _concerned(self, entry: Entry, near: set[Waiter] | None) -> set[Waiter]:
        if entry.kind == MEMORY:
            asking: set[Waiter] = set() if not entry.has_vector else set(self._asking) if near is None else near
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
