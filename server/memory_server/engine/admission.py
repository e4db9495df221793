"""Admission control: limits running and waiting calls. After `patience` seconds of waiting fewer may wait."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from memory_core.errors import Overloaded

ON_ITS_WAY = "memory.on_its_way"
"""Key in an HTTP request's scope of the place that it reserved when it arrived."""
_LEAST_PAUSE, _MOST_PAUSE = 0.25, 30.0


class Admission:
    """The slots of one server process, and the queue of calls that wait for one."""

    def __init__(self, at_once: int, waiting: int, patience: float) -> None:
        self._at_once, self._most_waiting, self._patience = at_once, waiting, patience
        self._busy = self._coming = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._calm_at = time.monotonic()
        self._refused_at = -patience
        self._flow = _Flow()

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[Slot]:
        """Hold a slot while inside. Raises Overloaded (too many calls wait already)."""
        await self._enter()
        slot = Slot(self)
        try:
            yield slot
        finally:
            self._flow.done()
            slot.end()

    @contextmanager
    def coming(self) -> Generator[OnItsWay]:
        """Reserve a place for a request until it asks for a slot, or ends."""
        self._coming += 1
        on_its_way = OnItsWay(self)
        try:
            yield on_its_way
        finally:
            on_its_way.arrive()

    def arrived(self) -> None:
        self._coming -= 1

    def is_full(self) -> bool:
        """Whether a new call would be refused, counting reserved places."""
        return self._busy + len(self._queue) + self._coming >= self._at_once + self._room()

    async def _enter(self) -> None:
        if not self._queue:
            self._calm_at = time.monotonic()
            if self._busy < self._at_once:
                self._busy += 1
                return
        self._shorten()
        if len(self._queue) >= self._room():
            raise self.refusal()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()
            elif turn in self._queue:
                self._queue.remove(turn)
            raise

    def enter_again(self) -> None:
        """Take a slot again, even if none is free: an admitted call is not refused later."""
        self._busy += 1

    def leave(self) -> None:
        """Free a slot for the call that waits longest."""
        self._busy -= 1
        while self._queue and self._busy < self._at_once:
            turn = self._queue.popleft()
            if not turn.done():
                self._busy += 1
                turn.set_result(None)
        if not self._queue:
            self._calm_at = time.monotonic()

    def _room(self) -> int:
        now = time.monotonic()
        lasts = now - self._calm_at > self._patience or now - self._refused_at < self._patience
        return min(max(1, self._at_once // 4), self._most_waiting) if lasts else self._most_waiting

    def _shorten(self) -> None:
        """Refuse the latest calls when a burst turns into a lasting load."""
        while len(self._queue) > self._room():
            turn = self._queue.pop()
            if not turn.done():
                turn.set_exception(self.refusal())

    def refusal(self) -> Overloaded:
        """Build the error of a refused call."""
        self._refused_at = time.monotonic()
        pause = self._flow.refused()
        return Overloaded(
            "the server is overloaded; nothing was done", hint=f"try again in {pause} s", retry_after=pause
        )


class OnItsWay:
    """The place of one request between its arrival and its slot."""

    def __init__(self, admission: Admission) -> None:
        self._admission, self._arrived = admission, False

    def arrive(self) -> None:
        """Free the place, once."""
        if not self._arrived:
            self._arrived = True
            self._admission.arrived()


class _Flow:
    """Counts calls done and refused in this second and the one before, to suggest when to retry."""

    def __init__(self) -> None:
        self._second = 0
        self._now, self._before = [0, 0], [0, 0]

    def done(self) -> None:
        self._turn()
        self._now[0] += 1

    def refused(self) -> float:
        """Count a refusal. Returns a pause in seconds that spreads the retries over the server's capacity."""
        self._turn()
        self._now[1] += 1
        done, refused = (now + before for now, before in zip(self._now, self._before, strict=True))
        pause = min(max(refused / max(done, 1), _LEAST_PAUSE), _MOST_PAUSE)
        return round(pause * random.uniform(1.0, 1.5), 3)  # noqa: S311  # nosec B311

    def _turn(self) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._before = self._now if second == self._second + 1 else [0, 0]
            self._now, self._second = [0, 0], second


class Slot:
    """The slot of one call, which the call frees while it only waits. Tasks that outlive the call change no slot."""

    def __init__(self, admission: Admission) -> None:
        self._admission, self._outside, self._ended = admission, 0, False

    def end(self) -> None:
        self._ended = True
        if not self._outside:
            self._admission.leave()

    @contextmanager
    def given_back(self) -> Generator[None]:
        """Let other calls use the slot while inside."""
        self._outside += 1
        if self._outside == 1 and not self._ended:
            self._admission.leave()
        try:
            yield
        finally:
            self._outside -= 1
            if not self._outside and not self._ended:
                self._admission.enter_again()
