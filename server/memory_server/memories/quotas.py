"""Knows how much each agent keeps, without counting it anew for every store.

A count of Redis is good for a second, or for longer where far from any limit, and what this process stores is added
to it. So several processes together may go over a limit by what they store within that time.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from memory_core.errors import QuotaExceeded
from memory_core.settings.quotas import QuotaSettings

_SECONDS, _RELAXED_SECONDS = 1.0, 30.0
_FAR = 10_000
"""With so much room left no process fills it within the longer time."""
_MOST_KNOWN = 10_000
Owner = tuple[str, tuple[str, ...]]
"""A namespace and the owner ids of one agent."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memories and their pieces: what there is, or what is about to be stored."""

    memories: int
    pieces: int

    def __add__(self, other: Room) -> Room:
        return Room(self.memories + other.memories, self.pieces + other.pieces)


class Quotas:
    """The counts of this process."""

    def __init__(self, limits: QuotaSettings) -> None:
        self._limits = limits
        self._known: dict[Owner, tuple[float, Room]] = {}

    async def take(self, owner: Owner, wanted: Room, count: Callable[[], Awaitable[Room]]) -> None:
        """Count something as stored that is about to be.

        Raises:
            QuotaExceeded: it would be more than one agent may keep.
        """
        if not (self._limits.memories or self._limits.pieces):
            return
        counted_at, there = self._known.get(owner, (0.0, Room(0, 0)))
        age = time.monotonic() - counted_at
        if age > _RELAXED_SECONDS or (age > _SECONDS and self._left(there) < _FAR):
            counted_at = time.monotonic()
            there = await count()
        after = there + wanted
        self._remember(owner, counted_at, there)
        self._check(there, after)
        self._known[owner] = counted_at, after

    def forget(self, namespace: str) -> None:
        """Count anew in a namespace where something was removed."""
        for owner in [owner for owner in self._known if owner[0] == namespace]:
            del self._known[owner]

    def _remember(self, owner: Owner, counted_at: float, there: Room) -> None:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[owner] = counted_at, there

    def _left(self, there: Room) -> int:
        limits = [(self._limits.memories, there.memories), (self._limits.pieces, there.pieces)]
        return min((limit - number for limit, number in limits if limit), default=_FAR)

    def _check(self, there: Room, after: Room) -> None:
        for what, limit, now, then in (
            ("memories", self._limits.memories, there.memories, after.memories),
            ("pieces of memories", self._limits.pieces, there.pieces, after.pieces),
        ):
            if limit and then > limit and then > now:
                raise QuotaExceeded(
                    f"you keep {now} {what}, and {then} would be more than the {limit} that one agent may",
                    hint="clear some with clear_memory, or ask whoever runs the memory to raise quotas",
                )
