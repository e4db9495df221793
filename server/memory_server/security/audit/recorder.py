"""Collects the audit entries of reads and refusals, so that one call writes many of them."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from memory_core.errors import RateLimited, Unauthenticated
from memory_core.records.audit_entry import AuditEntry, system_entry
from memory_core.records.ids import new_id
from memory_core.slices import slices

BATCH = 256
MOST_HELD = 20_000
"""Entries held while Redis is unavailable. More are dropped; an entry records how many."""
LOST = "audit_lost"
_CHEAP = (RateLimited.code, Unauthenticated.code)


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries of one namespace that are written together. The id identifies a repeated write."""

    id: str
    namespace: str
    entries: Sequence[AuditEntry]


class Recorder:
    """The entries of one process that wait to be written."""

    def __init__(self) -> None:
        self.some = asyncio.Event()
        """Set while entries wait."""
        self.enough = asyncio.Event()
        """Set while a full batch waits."""
        self._waiting: dict[str, list[AuditEntry]] = {}
        self._repeated: dict[tuple[str, ...], AuditEntry] = {}
        self._lost: Counter[str] = Counter()
        self._batches: deque[Batch] = deque()
        self.held = 0
        """Entries that wait to be written."""
        self.written_total = self.lost_total = 0

    def add(self, namespace: str, entry: AuditEntry) -> None:
        """Hold an entry. Repeated refusals for rate or authentication become one, since making them costs nothing."""
        if entry.get("outcome") in _CHEAP and self._is_repeated(namespace, entry):
            return
        if self.held >= MOST_HELD:
            self._lost[namespace] += 1
            self.lost_total += 1
            return
        self.held += 1
        self._waiting.setdefault(namespace, []).append(entry)
        self.some.set()
        if self.held >= BATCH:
            self.enough.set()

    def batches(self) -> list[Batch]:
        """Return all waiting entries in order. They stay held until `done`."""
        for namespace, number in self._lost.items():
            entry = {**system_entry("server", LOST), "outcome": "lost", "count": number}
            self._waiting.setdefault(namespace, []).append(entry)
            self.held += 1
        for namespace, entries in self._waiting.items():
            self._batches += [Batch(new_id(), namespace, part) for part in slices(entries, BATCH)]
        self._waiting.clear()
        self._repeated.clear()
        self._lost.clear()
        self.some.clear()
        self.enough.clear()
        return list(self._batches)

    def done(self, batch: Batch) -> None:
        """Drop a batch that was written."""
        self._batches.remove(batch)
        self.held -= len(batch.entries)
        self.written_total += len(batch.entries)

    def all_done(self) -> bool:
        """Whether all batches were written; if not, wake the writer again."""
        if self._batches:
            self.some.set()
        return not self._batches

    def _is_repeated(self, namespace: str, entry: AuditEntry) -> bool:
        key = (namespace, entry["who"], entry["op"], entry["from"])
        first = self._repeated.setdefault(key, entry)
        if first is entry:
            return False
        first["times"] = first.get("times", 1) + 1
        return True
