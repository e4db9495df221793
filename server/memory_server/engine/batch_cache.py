"""What reads of one batch share while they run side by side: each thing is asked of Redis once for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from memory_core.store import redis_time

T = TypeVar("T")
_GATHER_SECONDS = 0.003


class Shared:
    """One group of reads without a write between them, all by one caller; `now` is the moment they all see."""

    def __init__(self) -> None:
        self.now = redis_time.now()
        self._made: dict[Hashable, asyncio.Future[Any]] = {}
        self._gathered: dict[Hashable, list[tuple[Any, asyncio.Future[Any]]]] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def once(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """Make something the first time, and give the same to all who ask; who is cancelled cancels it for nobody."""
        if key not in self._made:
            self._made[key] = asyncio.ensure_future(make())
        return await asyncio.shield(self._made[key])

    async def each(
        self, keys: Sequence[Hashable], load: Callable[[Sequence[int]], Awaitable[dict[Hashable, T]]]
    ) -> list[T | None]:
        """Give the value of each key; `load` gets the positions of those that nobody asked for yet."""
        missing = [position for position, key in enumerate(keys) if key not in self._made]
        if missing:
            loading = asyncio.ensure_future(load(missing))
            self._made |= {keys[position]: loading for position in missing}
        for future in {id(self._made[key]): self._made[key] for key in keys}.values():
            await asyncio.shield(future)
        return [self._made[key].result().get(key) for key in keys]

    async def gathered(self, key: Hashable, item: Any, send: Callable[[Sequence[Any]], Awaitable[Sequence[T]]]) -> T:
        """Send items of a kind together that are wanted within a moment of each other, and give this one's answer."""
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


_shared: ContextVar[Shared | None] = ContextVar("shared", default=None)


@contextmanager
def together() -> Generator[None]:
    """Have the reads begun within share what they ask for."""
    token = _shared.set(Shared())
    try:
        yield
    finally:
        _shared.reset(token)


def shared() -> Shared | None:
    """What the present read shares with others; None outside a batch."""
    return _shared.get()


def now() -> float:
    """The time, the same for all reads that share."""
    current = _shared.get()
    return current.now if current else redis_time.now()


async def once(key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
    """Make something once for all reads that share; by itself, every time."""
    current = _shared.get()
    return await (current.once(key, make) if current else make())
