"""Tracks each operation to its end, so that it gets an audit entry whether it changed, read or was refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from memory_core.records.audit_entry import MOST_IDS, AuditEntry, new_entry
from memory_core.records.ids import bare_id, is_id, split_ids

CANCELLED = "cancelled"
_NAMING = ("memory_id", "task_id", "grant_id", "memory_ids")


@dataclass(slots=True)
class AuditedCall:
    """One operation: the ids that its caller named, and its outcome."""

    op: str = ""
    named: list[str] = field(default_factory=list[str])
    outcome: str = CANCELLED
    shown: list[str] = field(default_factory=list[str])
    shown_besides: list[str] = field(default_factory=list[str])
    written: bool = False
    """Whether a Function wrote the entry together with a change."""

    def succeeded(self, shown: Iterable[str] = (), shown_besides: Iterable[str] = ()) -> None:
        self.outcome, self.shown, self.shown_besides = "ok", list(shown), list(shown_besides)

    def entry(self, who: str, origin: str) -> AuditEntry | None:
        """Build the entry that is still to be written, if any, when the operation has ended."""
        if self.written and not self.shown_besides:
            return None
        ids = list(dict.fromkeys(self.shown_besides if self.written else [*self.named, *self.shown]))
        entry = new_entry(who, self.op, ids[:MOST_IDS], origin)
        return {**entry, "outcome": self.outcome, "count": len(ids)}


def named_ids(arguments: Mapping[str, Any]) -> list[str]:
    """Return the ids among some arguments. Other values are skipped: they could be any text."""
    given = [arguments.get(name) for name in _NAMING]
    return [text for value in given for text in map(bare_id, _items(value)) if isinstance(text, str) and is_id(text)][
        :MOST_IDS
    ]


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, str):
        return split_ids(value, MOST_IDS)
    return cast(list[Any], value) if isinstance(value, list) else ()
