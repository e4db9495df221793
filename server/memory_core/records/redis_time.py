"""Redis's clock, which decides when records expire, so that a server with a wrong clock answers correctly.

Until Redis is asked, as in a shell command, it is the wall clock of the process.
"""

from __future__ import annotations

import time

from memory_core.redis_client import Client

_ahead: float | None = None  # Redis's clock minus the monotonic clock of this process


async def ask(client: Client) -> float:
    """Ask Redis for its time in epoch seconds, and remember the offset."""
    sent = time.monotonic()
    seconds, microseconds = await client.time()
    answered = seconds + microseconds / 1_000_000
    hear(answered, sent, time.monotonic())
    return answered


def hear(answered: float, sent: float, received: float) -> None:
    """Learn from Redis's time at some moment between two monotonic times of ours.

    The offset changes no more than it must, so the answer with the shortest round trip counts most.
    """
    global _ahead
    least, most = answered - received, answered - sent
    _ahead = most if _ahead is None else min(max(_ahead, least), most)


def now() -> float:
    """Current epoch seconds by Redis's clock."""
    return time.time() if _ahead is None else time.monotonic() + _ahead
