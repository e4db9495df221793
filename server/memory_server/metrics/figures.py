"""Counts what a server does, as cheaply as can be: plain numbers here, made into metrics only when somebody asks.

Nothing in a figure tells who did something or to what: names of operations, outcomes and parts are few and fixed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets, in seconds."""


class Histogram:
    """How long something took, by bucket."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Figures:
    """The figures of one server process since it started."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        """Operations by name and outcome; each operation of a batch is one."""
        self.call_seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.bad_tokens = 0
        self.search_seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        """Parts of searches: understand (with the vector of the query), search, rank."""
        self.sweeps: Counter[str] = Counter({"done": 0, "failed": 0, "elsewhere": 0})

    def called(self, operation: str, outcome: str, seconds: float) -> None:
        """Count an operation that ended."""
        self.calls[operation, outcome] += 1
        self.call_seconds[operation].add(seconds)

    def searched(self, **milliseconds: float) -> None:
        """Count a search by how long its parts took."""
        for part, took in milliseconds.items():
            self.search_seconds[part].add(took / 1000)
