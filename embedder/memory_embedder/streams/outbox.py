"""Sends what is finished to Redis while the engine goes on: commits and replies, each repeated until it is through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis import exceptions as redis_errors

from memory_embedder.streams.retry import is_outage, persist

_log = logging.getLogger(__name__)
Action = Callable[[], Awaitable[None]]


class Outbox:
    """A queue of actions that are safe to repeat. It is unbounded: what may be held bounds it already."""

    def __init__(self, what: str, stopping: asyncio.Event) -> None:
        self._what = what
        self._stopping = stopping
        self._queue: asyncio.Queue[Action | None] = asyncio.Queue()

    def put(self, action: Action) -> None:
        """Have `action` done soon."""
        self._queue.put_nowait(action)

    def close(self) -> None:
        """Let the workers end once all is sent."""
        self._queue.put_nowait(None)

    async def work(self) -> None:
        """Send until closed; several workers may share an outbox."""
        while (action := await self._queue.get()) is not None:
            try:
                await persist(self._what, self._stopping, action)
            except redis_errors.RedisError as error:
                # Left pending in its stream: it is delivered again after the lease.
                _log.error("%s failed: %s", self._what, type(error).__name__)
            except Exception as error:
                if not is_outage(error):
                    raise
                _log.error("%s failed at the stop: %s", self._what, type(error).__name__)
        self.close()
