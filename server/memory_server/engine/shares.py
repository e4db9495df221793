"""Divides a capacity between holders: agents, or addresses that are not authenticated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable


class Shares:
    """A holder may take more while it holds less than is free: alone half of the capacity, of two each a third.

    So one holder never takes everything, and the next holder always finds room. `most` limits each holder further.
    """

    def __init__(self, capacity: int, most: int | None = None) -> None:
        self._capacity, self._used = capacity, 0
        self._most = capacity if most is None else most
        self._held: Counter[Hashable] = Counter()

    def has_room(self, holder: Hashable, amount: int = 1) -> bool:
        free = self._capacity - self._used
        return amount <= free and (amount == 0 or self._held[holder] < min(free, self._most))

    def held(self, holder: Hashable) -> int:
        return self._held.get(holder, 0)

    def take(self, holder: Hashable, amount: int = 1) -> bool:
        """Take an amount for a holder; False if that is more than its share."""
        if not self.has_room(holder, amount):
            return False
        self.force(holder, amount)
        return True

    def force(self, holder: Hashable, amount: int = 1) -> None:
        """Count an amount that was admitted already."""
        self._used += amount
        self._held[holder] += amount

    def give_back(self, holder: Hashable, amount: int = 1) -> None:
        self._used -= amount
        self._held[holder] -= amount
        if not self._held[holder]:
            del self._held[holder]
