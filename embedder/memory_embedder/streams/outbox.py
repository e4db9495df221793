"""Sends commits and replies to Redis in the background, and retries each until it succeeds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis import exceptions as redis_errors

from memory_embedder.streams.retry import is_outage, retry

_log = logging.getLogger(__name__)
Action = Callable[[], Awaitable[None]]
GiveUp = Callable[[], None]


class Outbox:
    """A queue of actions that are safe to repeat. It needs no limit: the number of held entries is limited."""

    def __init__(self, name: str, stopping: asyncio.Event) -> None:
        self._name = name
        self._stopping = stopping
        self._queue: asyncio.Queue[tuple[Action, GiveUp | None] | None] = asyncio.Queue()

    def put(self, action: Action, give_up: GiveUp | None = None) -> None:
        """Queue an action. If Redis refuses it, `give_up` lets go of its entry, so that it is delivered again."""
        self._queue.put_nowait((action, give_up))

    def close(self) -> None:
        """Let the workers end when the queue is empty."""
        self._queue.put_nowait(None)

    async def work(self) -> None:
        """Run queued actions until closed. Several workers may share an outbox."""
        while (queued := await self._queue.get()) is not None:
            action, give_up = queued
            try:
                await retry(self._name, self._stopping, action)
            except redis_errors.RedisError as error:
                # The entry stays pending in its stream. Once let go of, it is delivered again after the lease.
                _log.error("%s failed: %s", self._name, type(error).__name__)
                if give_up:
                    give_up()
            except Exception as error:
                if not is_outage(error):
                    raise
                _log.error("%s failed while stopping: %s", self._name, type(error).__name__)
        self.close()
