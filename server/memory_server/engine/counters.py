"""Counts operations of a server. No figure names an agent or a memory."""

from __future__ import annotations

from collections import Counter

from memory_core.observe.metric_families import Families

FAMILIES = Families("memory_server_")


class Counters:
    """The counters of one server process since it started."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        """Operations by name and outcome; each operation of a batch counts."""
        self.call_seconds = FAMILIES.histogram("call_seconds", "How long operations took.", "operation")
        self.bad_tokens = 0
        self.damaged = 0
        """Damaged entries that were removed from Redis."""
        self.turned_away = 0
        """Calls refused before their operation was known."""
        text = "How long the parts of searches took."
        self.search_part_seconds = FAMILIES.histogram("search_part_seconds", text, "part")
        """Parts: understand (with the vector of the query), search, rank."""
        self.sweeps: Counter[str] = Counter({"done": 0, "failed": 0, "elsewhere": 0})

    def called(self, operation: str, outcome: str, seconds: float) -> None:
        self.calls[operation, outcome] += 1
        self.call_seconds.labels(operation).observe(seconds)

    def searched(self, **milliseconds: float) -> None:
        for part, took in milliseconds.items():
            self.search_part_seconds.labels(part).observe(took / 1000)
