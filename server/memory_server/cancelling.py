"""Ends tasks for certain: on Python 3.11 a Redis client that connects or reads may swallow a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_PATIENCE_SECONDS = 0.2


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel until all have ended."""
    known = list(tasks)
    while pending := [task for task in known if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_PATIENCE_SECONDS)
