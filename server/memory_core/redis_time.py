"""Redis's clock, by which it stamps and expires: a server whose own is wrong must hide nothing early, or show it late.

Where Redis was never heard, as in a shell command, it is the process's own wall clock.
"""

from __future__ import annotations

import time
from typing import Any

_ahead: float | None = None
"""How far Redis's clock was ahead of this process's monotonic one, which nobody sets."""


def hear(info: dict[str, Any]) -> None:
    """Learn what Redis's clock says from the answer to INFO server that has just come."""
    global _ahead
    told = info.get("server_time_usec")
    if told:
        _ahead = int(told) / 1_000_000 - time.monotonic()


def now() -> float:
    """Epoch seconds by Redis's clock, as last heard."""
    return time.time() if _ahead is None else time.monotonic() + _ahead
