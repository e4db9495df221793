"""Builds audit entries. They never include content."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from memory_core.records.ids import new_id

AuditEntry = dict[str, Any]
MOST_IDS = 50  # most ids of returned memories in one entry; `count` has their number


def new_entry(
    who: str, op: str, ids: Sequence[str], origin: str, *, by: str | None = None, shown: Sequence[str] = ()
) -> AuditEntry:
    """Build the entry of an operation. `by` is the admin that acts as `who`. The nonce is a ULID and has the time."""
    entry: AuditEntry = {"who": who, "op": op, "ids": list(ids), "from": origin, "nonce": new_id()}
    if by is not None:
        entry["by"] = by
    if shown:
        entry["shown"] = " ".join(shown[:MOST_IDS])
    return entry


def system_entry(who: str, op: str, ids: Sequence[str] = ()) -> AuditEntry:
    """Build the entry of an operation that the server or an operator at the console starts."""
    return new_entry(who, op, ids, f"{who} {os.getpid()}")
