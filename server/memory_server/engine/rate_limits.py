"""Limits with token buckets the calls of an agent, and the requests of an address before their tokens are checked."""

from __future__ import annotations

import time
from collections.abc import Hashable

from memory_core.errors import RateLimited

_FORGET_ABOVE = 10_000


class Buckets:
    """Each holder has a bucket that refills by `per_second` up to `burst`."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self.burst = per_second, float(burst)
        self._forget_above = _FORGET_ABOVE
        self._levels: dict[Hashable, tuple[float, float]] = {}

    def seconds_until(self, holder: Hashable, amount: float) -> float:
        """Return the time until a holder's bucket has an amount."""
        return max(0.0, (amount - self._level(holder, time.monotonic())) / self._per_second)

    def spend(self, holder: Hashable, amount: float) -> float:
        """Take an amount, even if the bucket then owes some. Returns the seconds until it owes nothing."""
        now = time.monotonic()
        left = self._level(holder, now) - amount
        self._levels[holder] = (left, now)
        if len(self._levels) > self._forget_above:
            self._levels = {one: (level, seen) for one, (level, seen) in self._levels.items() if not self._is_full(one)}
            self._forget_above = max(_FORGET_ABOVE, 2 * len(self._levels))
        return max(0.0, -left / self._per_second)

    def _level(self, holder: Hashable, now: float) -> float:
        level, seen = self._levels.get(holder, (self.burst, now))
        return min(self.burst, level + (now - seen) * self._per_second)

    def _is_full(self, holder: Hashable) -> bool:
        return self._level(holder, time.monotonic()) >= self.burst


class Rates:
    """The call rates of the agents of one server process."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._buckets = Buckets(per_second, burst)

    def take(self, namespace: str, agent: str, calls: int = 1) -> None:
        """Take calls from an agent's bucket; raises RateLimited. A full bucket allows more than `burst` at once."""
        holder = (namespace, agent)
        if missing := self._buckets.seconds_until(holder, min(calls, self._buckets.burst)):
            pause = max(0.001, round(missing, 3))
            raise RateLimited(
                f"{agent} calls too often; {self._per_second:g} calls a second are allowed",
                hint=f"try again in {pause} s",
                retry_after=pause,
            )
        self._buckets.spend(holder, calls)
