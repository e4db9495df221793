"""Deduplicates the Redis reads of one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, TypeVar

from memory_core.records import redis_time

T = TypeVar("T")
_GATHER_SECONDS = 0.003


class BatchCache:
    """Answers shared by a group of reads of one caller, without writes in between, all as of `now`."""

    def __init__(self) -> None:
        self.now = redis_time.now()
        self._made: dict[Hashable, asyncio.Future[Any]] = {}
        self._gathered: dict[Hashable, list[tuple[Any, asyncio.Future[Any]]]] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def once(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """Make something once and share it. A cancelled read does not cancel it for others."""
        if key not in self._made:
            self._made[key] = asyncio.ensure_future(make())
        return await asyncio.shield(self._made[key])

    async def each(
        self, keys: Sequence[Hashable], load: Callable[[Sequence[int]], Awaitable[dict[Hashable, T]]]
    ) -> list[T | None]:
        """Return the value of each key; `load` receives the positions of the keys that are still missing."""
        missing = [position for position, key in enumerate(keys) if key not in self._made]
        if missing:
            loading = asyncio.ensure_future(load(missing))
            self._made |= {keys[position]: loading for position in missing}
        for future in {id(self._made[key]): self._made[key] for key in keys}.values():
            await asyncio.shield(future)
        return [self._made[key].result().get(key) for key in keys]

    async def gathered(self, key: Hashable, item: Any, send: Callable[[Sequence[Any]], Awaitable[Sequence[T]]]) -> T:
        """Send items with the same key together if they come within a few milliseconds. Returns this item's answer."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiting = self._gathered.setdefault(key, [])
        waiting.append((item, future))
        if len(waiting) == 1:
            task = asyncio.create_task(self._send(key, send))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return await future

    async def _send(self, key: Hashable, send: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        waiting = self._gathered.pop(key)
        try:
            answers = await send([item for item, _ in waiting])
        except Exception as error:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(waiting, answers, strict=True):
            if not future.done():
                future.set_result(answer)


def now(cache: BatchCache | None) -> float:
    """Return the time; the same for all reads that share a cache."""
    return cache.now if cache else redis_time.now()


async def once(cache: BatchCache | None, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
    """Make something, once for all reads that share a cache."""
    return await (cache.once(key, make) if cache else make())
