"""Collects the audit entries of reads and refusals, so that one call writes many of them.

An agent that reads too often gets merged entries, so that its reads do not fill the audit.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from memory_core.errors import RateLimited, Unauthenticated
from memory_core.records.audit_entry import MOST_IDS, AuditEntry, system_entry
from memory_core.records.ids import new_id
from memory_core.slices import slices
from memory_server.engine.rate_limits import Rates

BATCH = 128
MOST_HELD = 20_000
"""Entries held while Redis is unavailable. More are dropped; an entry records how many."""
LOST = "audit_lost"
DETAILED, DETAILED_PER_SECOND = 1000, 0.5
"""Entries of one agent that are kept one by one: so many in a burst, and so many each second."""
MERGED_SECONDS = 60.0
"""Further ones of one operation and outcome become one entry in this time."""
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
        self._detailed = Rates(DETAILED_PER_SECOND, DETAILED)
        self._merged: dict[tuple[str, ...], tuple[float, AuditEntry]] = {}
        self._lost: Counter[str] = Counter()
        self._batches: deque[Batch] = deque()
        self.held = 0
        """Entries that wait to be written."""
        self.written_total = self.lost_total = 0

    def add(self, namespace: str, entry: AuditEntry) -> None:
        """Hold an entry. Repeated refusals for rate or authentication become one, since making them costs nothing."""
        if entry.get("outcome") in _CHEAP and self._is_repeated(namespace, entry):
            return
        is_frequent = self._is_frequent(namespace, entry)
        if is_frequent and self._is_merged(namespace, entry):
            return
        if self.held >= MOST_HELD:
            self._lost[namespace] += 1
            self.lost_total += 1
            return
        self.held += 1
        if is_frequent:
            self._merged[_key(namespace, entry)] = time.monotonic() + MERGED_SECONDS, {**entry, "times": 1}
            self.some.set()
            return
        self._waiting.setdefault(namespace, []).append(entry)
        self.some.set()
        if self.held >= BATCH:
            self.enough.set()

    def batches(self, *, merged: bool = True) -> list[Batch]:
        """Return all waiting entries in order, and the merged ones that are due, or all. They are held until `done`."""
        for key, (until, entry) in list(self._merged.items()):
            if merged or until < time.monotonic():
                self._waiting.setdefault(key[0], []).append(entry)
                del self._merged[key]
        for namespace, number in self._lost.items():
            entry = {**system_entry("server", LOST), "outcome": "lost", "count": number}
            self._waiting.setdefault(namespace, []).append(entry)
            self.held += 1
        for namespace, entries in self._waiting.items():
            self._batches += [Batch(new_id(), namespace, part) for part in slices(entries, BATCH)]
        self._waiting.clear()
        self._repeated.clear()
        self._lost.clear()
        if not self._merged:
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

    def _is_frequent(self, namespace: str, entry: AuditEntry) -> bool:
        try:
            self._detailed.take(namespace, entry["who"])
        except RateLimited:
            return True
        return False

    def _is_merged(self, namespace: str, entry: AuditEntry) -> bool:
        """Count an entry in an earlier one of the same kind, which also names its ids."""
        _, first = self._merged.get(_key(namespace, entry), (0.0, None))
        if first is None:
            return False
        first["times"] += 1
        first["ids"] = list(dict.fromkeys([*first["ids"], *entry["ids"]]))[:MOST_IDS]
        first["count"] = first.get("count", 0) + entry.get("count", 0)
        return True

    def _is_repeated(self, namespace: str, entry: AuditEntry) -> bool:
        key = (namespace, entry["who"], entry["op"], entry["from"])
        first = self._repeated.setdefault(key, entry)
        if first is entry:
            return False
        first["times"] = first.get("times", 1) + 1
        return True


def _key(namespace: str, entry: AuditEntry) -> tuple[str, ...]:
    return (namespace, *(str(entry.get(name, "")) for name in ("who", "by", "op", "outcome", "from")))
