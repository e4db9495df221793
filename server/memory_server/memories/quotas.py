"""Enforces per-agent storage quotas. A count from Redis is used for a second, or longer if far from any limit.

What earlier holders of an agent's name kept counts too, so that leaving and registering again frees no quota.

Several processes together may exceed a limit by what they store within that time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from memory_core.errors import QuotaExceeded
from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.scope import Principal
from memory_core.settings.settings import Settings
from memory_server.engine.namespaces import Namespaces
from memory_server.index import queries
from memory_server.index import query_builder as build

_SECONDS, _RELAXED_SECONDS = 1.0, 30.0
_FAR = 10_000  # with so much left, no process reaches the limit within the longer time
_MOST_KNOWN = 10_000
Owner = tuple[str, tuple[str, ...]]
"""A namespace and the owner ids of one agent."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of memories and of their chunks."""

    memories: int
    chunks: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.memories + other.memories, self.chunks + other.chunks)


class Quotas:
    """The counts of this process."""

    def __init__(self, settings: Settings, namespaces: Namespaces) -> None:
        self._limits, self._timeout_ms = settings.quotas, settings.search_timeout_ms
        self._namespaces = namespaces
        self._known: dict[Owner, tuple[float, Usage]] = {}

    async def take(self, principal: Principal, memories: int, chunks: int) -> None:
        """Count memories that are about to be stored. Raises QuotaExceeded or StoreUnavailable."""
        await self.check(principal, memories, chunks)
        if before := self._known.get(_owner_of(principal)):
            self._known[_owner_of(principal)] = before[0], before[1] + Usage(memories, chunks)

    async def check(self, principal: Principal, memories: int, chunks: int) -> None:
        """Like `take`, but count nothing: for what another agent asks for and may yet be refused."""
        if not (self._limits.memories or self._limits.pieces):
            return
        owner = _owner_of(principal)
        counted_at, before = self._known.get(owner, (0.0, Usage(0, 0)))
        age = time.monotonic() - counted_at
        if age > _RELAXED_SECONDS or (age > _SECONDS and self._left(before) < _FAR):
            counted_at = time.monotonic()
            before = await self.count(principal)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[owner] = counted_at, before
        self._compare(before, before + Usage(memories, chunks), principal)

    async def count(self, principal: Principal) -> Usage:
        """Count an agent's memories and chunks. Raises StoreUnavailable."""
        keys, (_, owners) = Keys(principal.namespace), _owner_of(principal)
        own = build.kept_by(owners, redis_time.now())
        counted = [build.memories(own), own]
        counts = await self._namespaces.search(
            keys.namespace, lambda client: queries.count_all(client, keys, counted, self._timeout_ms)
        )
        return Usage(*counts)

    def forget(self, namespace: str) -> None:
        """Discard the counts of a namespace after something was removed."""
        for owner in [owner for owner in self._known if owner[0] == namespace]:
            del self._known[owner]

    def _left(self, usage: Usage) -> int:
        limits = [(self._limits.memories, usage.memories), (self._limits.pieces, usage.chunks)]
        return min((limit - number for limit, number in limits if limit), default=_FAR)

    def _compare(self, before: Usage, after: Usage, principal: Principal) -> None:
        earlier = f"; what an earlier {principal.agent} kept counts too" if principal.kept else ""
        for what, limit, now, then in (
            ("memories", self._limits.memories, before.memories, after.memories),
            ("pieces of memories", self._limits.pieces, before.chunks, after.chunks),
        ):
            if limit and then > limit and then > now:
                raise QuotaExceeded(
                    f"you keep {now} {what}, and {then} would be more than the {limit} that one agent may{earlier}",
                    hint="clear some with clear_memory, revoke grants to write, or ask the operator to raise quotas",
                )


def _owner_of(principal: Principal) -> Owner:
    return principal.namespace, (*principal.owners, *principal.kept)
