"""Redis's clock, by which it stamps and expires: a server whose own is wrong must hide nothing early, or show it late.

Where Redis was never asked, as in a shell command, it is the process's own wall clock.
"""

from __future__ import annotations

import time
from typing import Any

_ahead: float | None = None
"""How far Redis's clock was ahead of this process's monotonic one, which nobody sets."""


async def ask(client: Any) -> float:
    """Ask a Redis for its time, in epoch seconds, and remember it.

    Raises:
        redis.exceptions.RedisError: as `memory_core.store.connection.store_errors` expects.
    """
    sent = time.monotonic()
    seconds, microseconds = await client.time()
    told = seconds + microseconds / 1_000_000
    hear(told, sent, time.monotonic())
    return told


def hear(told: float, sent: float, received: float) -> None:
    """Learn what Redis's clock said at some moment between two of our monotonic one. The closest pair counts longest:
    what is known already is only moved as far as it must be."""
    global _ahead
    least, most = told - received, told - sent
    _ahead = most if _ahead is None else min(max(_ahead, least), most)


def now() -> float:
    """Epoch seconds by Redis's clock, as last heard."""
    return time.time() if _ahead is None else time.monotonic() + _ahead
