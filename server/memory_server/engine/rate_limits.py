"""Limits the call rate of each agent with a token bucket."""

from __future__ import annotations

import time

from memory_core.errors import RateLimited

_FORGET_ABOVE = 10_000


class Rates:
    """The token buckets of one server process. Each refills by `per_second` calls up to `burst`."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._forget_above = _FORGET_ABOVE
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def take(self, namespace: str, agent: str, calls: int = 1) -> None:
        """Take calls from an agent's bucket; raises RateLimited. A full bucket allows more than `burst` at once."""
        now = time.monotonic()
        left, seen = self._buckets.get((namespace, agent), (self._burst, now))
        left = min(self._burst, left + (now - seen) * self._per_second)
        needed = min(float(calls), self._burst)
        if left < needed:
            pause = max(0.001, round((needed - left) / self._per_second, 3))
            raise RateLimited(
                f"{agent} calls too often; {self._per_second:g} calls a second are allowed",
                hint=f"try again in {pause} s",
                retry_after=pause,
            )
        self._buckets[namespace, agent] = (left - calls, now)
        if len(self._buckets) > self._forget_above:
            self._forget(now)

    def _forget(self, now: float) -> None:
        self._buckets = {
            who: (left, seen)
            for who, (left, seen) in self._buckets.items()
            if left + (now - seen) * self._per_second < self._burst
        }
        self._forget_above = max(_FORGET_ABOVE, 2 * len(self._buckets))
