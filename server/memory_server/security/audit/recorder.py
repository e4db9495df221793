"""Holds the entries of reads and refusals for a moment, so that many go to Redis in one call."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass

from memory_core.errors import RateLimited, Unauthenticated
from memory_core.records.audit_entry import AuditEntry, system_entry
from memory_core.records.ids import new_id

BATCH = 256
MOST_HELD = 20_000
"""Entries held while Redis is away. What comes beyond is counted, and the number noted."""
LOST = "audit_lost"
_CHEAP = (RateLimited.code, Unauthenticated.code)


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries of one namespace that are written together, under an id by which a repeat is known."""

    id: str
    namespace: str
    entries: list[AuditEntry]


class Recorder:
    """The entries of one process that wait to be written."""

    def __init__(self) -> None:
        self.some = asyncio.Event()
        """Something waits."""
        self.enough = asyncio.Event()
        """As much waits as one batch holds."""
        self._waiting: dict[str, list[AuditEntry]] = {}
        self._repeated: dict[tuple[str, ...], AuditEntry] = {}
        self._lost: Counter[str] = Counter()
        self._batches: deque[Batch] = deque()
        self._held = 0
        self.written_total = self.lost_total = 0

    def add(self, namespace: str, entry: AuditEntry) -> None:
        """Take an entry. Refusals of whoever calls too often, or is nobody, become one: they are too cheap to make."""
        if entry.get("outcome") in _CHEAP and self._is_repeated(namespace, entry):
            return
        if self._held >= MOST_HELD:
            self._lost[namespace] += 1
            self.lost_total += 1
            return
        self._held += 1
        self._waiting.setdefault(namespace, []).append(entry)
        self.some.set()
        if self._held >= BATCH:
            self.enough.set()

    def batches(self) -> list[Batch]:
        """Give all that waits, in the order in which it came; it is held until `done`."""
        for namespace, number in self._lost.items():
            entry = {**system_entry("server", LOST), "outcome": "lost", "count": number}
            self._waiting.setdefault(namespace, []).append(entry)
            self._held += 1
        for namespace, entries in self._waiting.items():
            for start in range(0, len(entries), BATCH):
                self._batches.append(Batch(new_id(), namespace, entries[start : start + BATCH]))
        self._waiting.clear()
        self._repeated.clear()
        self._lost.clear()
        self.some.clear()
        self.enough.clear()
        return list(self._batches)

    @property
    def held(self) -> int:
        """Entries that wait to be written."""
        return self._held

    def done(self, batch: Batch) -> None:
        """Let go of a batch that is written."""
        self._batches.remove(batch)
        self._held -= len(batch.entries)
        self.written_total += len(batch.entries)

    def _is_repeated(self, namespace: str, entry: AuditEntry) -> bool:
        key = (namespace, entry["who"], entry["op"], entry["from"])
        first = self._repeated.setdefault(key, entry)
        if first is entry:
            return False
        first["times"] = first.get("times", 1) + 1
        return True
