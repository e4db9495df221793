"""What the server says of an operation, in the one form in which it goes into the audit: never any content."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from memory_core.records.ids import new_id

Said = dict[str, Any]
MOST_IDS = 50  # ids of shown memories that an entry names; `count` tells how many there were


def said(
    who: str, op: str, ids: Sequence[str], origin: str, *, by: str | None = None, shown: Sequence[str] = ()
) -> Said:
    """Say that somebody does something to some ids, as himself or, where `by` is given, through that admin.

    The nonce, which no two entries share, begins with the milliseconds of now.
    """
    entry: Said = {"who": who, "op": op, "ids": list(ids), "from": origin, "nonce": new_id()}
    if by is not None:
        entry["by"] = by
    if shown:
        entry["shown"] = " ".join(shown[:MOST_IDS])
    return entry


def by_itself(who: str, op: str, ids: Sequence[str] = ()) -> Said:
    """Say what the server, or somebody at its console, does of its own accord."""
    return said(who, op, ids, f"{who} {os.getpid()}")
