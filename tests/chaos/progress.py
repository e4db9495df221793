"""Waits as long as something changes, so that a slow machine is not a fault and a stuck task is one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from redis.exceptions import RedisError


@dataclass(frozen=True, slots=True)
class Patience:
    """When to give up. Counts looks as well as seconds, because a suspended machine does not look."""

    stalled_seconds: float = 120.0
    """Without a change: many times the longest lease, claim or retry of a run."""
    stalled_looks: int = 60
    most_seconds: float = 1800.0
    """Altogether: work that changes forever without an end is a fault, too."""
    pause: float = 0.25
    """Seconds between looks."""


PATIENCE = Patience()


async def settle(look: Callable[[], Awaitable[list[str]]], patience: Patience = PATIENCE) -> list[str]:
    """Wait until `look` finds nothing unfinished; return what is left, and why the wait ended.

    `look` describes unfinished work with its numbers. Each change of the description counts as progress.
    """
    began = changed = time.monotonic()
    before: list[str] = []
    unchanged = 0
    while left := await _found(look):
        now = time.monotonic()
        if left != before:
            before, changed, unchanged = left, now, 0
        unchanged += 1
        if unchanged > patience.stalled_looks and now - changed > patience.stalled_seconds:
            return [*left, f"nothing changed for {now - changed:.0f} s"]
        if now - began > patience.most_seconds:
            return [*left, f"no end after {now - began:.0f} s"]
        await asyncio.sleep(patience.pause)
    return []


async def _found(look: Callable[[], Awaitable[list[str]]]) -> list[str]:
    """What is unfinished. A Redis that does not answer makes no progress."""
    try:
        return await look()
    except (RedisError, OSError) as error:
        return [f"Redis does not answer: {type(error).__name__}"]
