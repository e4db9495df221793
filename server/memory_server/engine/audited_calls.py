"""Follows each operation to its end, so that it leaves an entry whether it changed, read or was refused something.

What changes something is noted by the Function that changes it; all else is noted here, in a buffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from memory_core.records.audit_entry import MOST_IDS, Said, said
from memory_core.records.ids import is_id

CANCELLED = "cancelled"
_NAMING = ("memory_id", "task_id", "grant_id", "memory_ids")
in_hand: ContextVar[Call | None] = ContextVar("in_hand", default=None)
"""The operation that the running code belongs to."""


@dataclass(slots=True)
class Call:
    """One operation: the ids that its caller named, and what came of it."""

    op: str
    named: list[str]
    outcome: str = CANCELLED
    shown: list[str] = field(default_factory=list[str])
    shown_besides: list[str] = field(default_factory=list[str])
    written: bool = False
    """Whether a Function has noted it together with a change."""

    def succeeded(self, shown: Iterable[str] = (), shown_besides: Iterable[str] = ()) -> None:
        """Say that it was done, and the contents of which ids its caller was shown."""
        self.outcome, self.shown, self.shown_besides = "ok", list(shown), list(shown_besides)

    def entry(self, who: str, origin: str) -> Said | None:
        """Give what is left to be noted when it has ended."""
        if self.written and not self.shown_besides:
            return None
        ids = list(dict.fromkeys(self.shown_besides if self.written else [*self.named, *self.shown]))
        entry = said(who, self.op, ids[:MOST_IDS], origin)
        return {**entry, "outcome": self.outcome, "count": len(ids)}


def named_ids(arguments: Mapping[str, Any]) -> list[str]:
    """Give the ids among some arguments. What is not of their form could be anything, and is left out."""
    given = [arguments.get(name) for name in _NAMING]
    texts: Iterable[Any] = (item for value in given for item in (value if isinstance(value, list) else [value]))
    return [text for text in texts if isinstance(text, str) and is_id(text)][:MOST_IDS]
