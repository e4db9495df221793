"""Counts what a server does, in plain numbers. A scrape turns them into metrics.

The counters name no agent and no memory: only operations, outcomes and parts, which are few and fixed.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from memory_core.observe.histogram import Histogram


class Counters:
    """The counters of one server process since it started."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        """Operations by name and outcome; each operation of a batch is one."""
        self.call_seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.bad_tokens = 0
        self.turned_away = 0
        """Calls refused on arrival, before their operation is known."""
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
