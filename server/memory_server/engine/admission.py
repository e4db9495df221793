"""Admission control: limits running and waiting calls, and divides both between agents.

The agents take turns. An agent that calls alone may use three quarters of the slots; while others call too, an eighth
(two of 16), because calls that run side by side slow each other. If too many calls wait, the agent that has most of
them waiting loses its latest. After `patience` seconds of waiting fewer may wait.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Generator, Hashable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from memory_core.errors import Overloaded

SLOT = "memory.slot"
"""Key in an HTTP request's scope of the slot that it holds."""
_ACTIVE_SECONDS = 1.0
"""How long an agent counts as active after a call."""
_SHARE = 8
_LEAST_PAUSE, _MOST_PAUSE = 0.25, 30.0


@dataclass(slots=True, eq=False)
class _Lane:
    """The calls of one agent. Those in `queue` may be refused, those in `patient` wait as long as it takes."""

    running: int = 0
    queue: deque[asyncio.Future[None]] = field(default_factory=deque[asyncio.Future[None]])
    patient: deque[asyncio.Future[None]] = field(default_factory=deque[asyncio.Future[None]])
    _was_patient: bool = False

    @property
    def waits(self) -> bool:
        return bool(self.queue or self.patient)

    def next_queue(self) -> deque[asyncio.Future[None]]:
        """Return the queue whose call is next: both in turn."""
        self._was_patient = bool(self.patient) and not (self.queue and self._was_patient)
        return self.patient if self._was_patient else self.queue


class Admission:
    """The slots of one server process, and the queues of calls that wait for one."""

    def __init__(self, at_once: int, waiting: int, patience: float) -> None:
        self._at_once, self._most_waiting, self._patience = at_once, waiting, patience
        self._shared = max(1, at_once // _SHARE)
        self._busy = self._waiting = 0
        self._lanes: dict[Hashable, _Lane] = {}
        """The agents with calls, in the order of their turns."""
        self._active: dict[Hashable, float] = {}
        """When each agent called last, the latest at the end."""
        self._calm_at = self._done_at = time.monotonic()
        self._refused_at = -patience
        self._flow = _Flow()

    @asynccontextmanager
    async def slot(self, holder: Hashable = None, *, patient: bool = False) -> AsyncGenerator[Slot]:
        """Hold a slot of an agent while inside. Raises Overloaded (too many calls wait already), unless `patient`."""
        await self._enter(holder, patient)
        slot = Slot(self, holder)
        try:
            yield slot
        finally:
            slot.end()

    def refuses(self) -> bool:
        """Whether an agent without other calls would be refused now, or no call has ended for too long."""
        if self._busy < self._at_once:
            return False
        stalled = self._waiting > 0 and time.monotonic() - max(self._done_at, self._calm_at) > self._patience
        return stalled or (self._waiting >= self._room() and max(map(_length, self._lanes.values()), default=0) <= 1)

    async def _enter(self, holder: Hashable, patient: bool) -> None:
        if not self._waiting:
            self._calm_at = time.monotonic()
        self._note_active(holder)
        lane = self._lanes.setdefault(holder, _Lane())
        try:
            if not lane.waits and self._may_run(lane):
                self._run(lane)
            elif patient:
                await self._turn(holder, lane.patient)
            else:
                self._make_room(lane)
                self._waiting += 1
                await self._turn(holder, lane.queue)
        finally:
            self._forget(holder, lane)

    async def _turn(self, holder: Hashable, queue: deque[asyncio.Future[None]]) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in queue:
                queue.remove(turn)
                self._waiting -= queue is self._lanes[holder].queue
            elif not turn.cancelled() and turn.exception() is None:
                self.leave(holder)
            raise

    def _run(self, lane: _Lane) -> None:
        self._busy, lane.running = self._busy + 1, lane.running + 1

    def enter_again(self, holder: Hashable = None) -> None:
        """Take a slot again, even if none is free: an admitted call is not refused later."""
        self._run(self._lanes.setdefault(holder, _Lane()))

    async def enter_in_turn(self, holder: Hashable = None) -> None:
        """Take a slot again when it is the agent's turn. It is not refused."""
        await self._enter(holder, patient=True)

    def leave(self, holder: Hashable = None) -> None:
        """Free a slot for the agent whose turn it is."""
        lane = self._lanes[holder]
        self._busy, lane.running = self._busy - 1, lane.running - 1
        self._forget(holder, lane)
        while turn := self._next_turn():
            turn.set_result(None)
        if not self._waiting:
            self._calm_at = time.monotonic()

    def ended(self) -> None:
        """Count a call that ended."""
        self._done_at = time.monotonic()
        self._flow.done()

    def several_call(self) -> bool:
        """Whether more than one agent called in the last second."""
        return len(self._active) > 1

    def _may_run(self, lane: _Lane) -> bool:
        share = self._shared if self.several_call() else self._at_once - self._at_once // 4
        return self._busy < self._at_once and lane.running < share

    def _note_active(self, holder: Hashable) -> None:
        now = time.monotonic()
        self._active.pop(holder, None)
        self._active[holder] = now
        while now - next(iter(self._active.values())) > _ACTIVE_SECONDS:
            del self._active[next(iter(self._active))]

    def _next_turn(self) -> asyncio.Future[None] | None:
        """Give the first agent that may run a call its turn, and put it behind the others."""
        for holder, lane in self._lanes.items():
            while lane.waits and self._may_run(lane):
                queue = lane.next_queue()
                turn = queue.popleft()
                self._waiting -= queue is lane.queue
                if not turn.done():
                    self._lanes[holder] = self._lanes.pop(holder)
                    self._run(lane)
                    return turn
        return None

    def _forget(self, holder: Hashable, lane: _Lane) -> None:
        if not lane.running and not lane.waits and self._lanes.get(holder) is lane:
            del self._lanes[holder]

    def _room(self) -> int:
        now = time.monotonic()
        lasts = now - self._calm_at > self._patience or now - self._refused_at < self._patience
        return min(max(1, self._at_once // 4), self._most_waiting) if lasts else self._most_waiting

    def _make_room(self, lane: _Lane) -> None:
        """Refuse the latest calls of the agents that have most waiting; raises Overloaded if that is this agent."""
        while self._waiting >= self._room():
            longest = max(self._lanes.values(), key=_length)
            if self._waiting == self._room() and _length(longest) <= _length(lane) + 1:
                raise self.refusal()
            turn = longest.queue.pop()
            self._waiting -= 1
            if not turn.done():
                turn.set_exception(self.refusal())

    def refusal(self) -> Overloaded:
        """Build the error of a refused call."""
        self._refused_at = time.monotonic()
        pause = self._flow.refused()
        return Overloaded(
            "the server is overloaded; nothing was done", hint=f"try again in {pause} s", retry_after=pause
        )


def _length(lane: _Lane) -> int:
    return len(lane.queue)


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

    def __init__(self, admission: Admission, holder: Hashable) -> None:
        self._admission, self._holder = admission, holder
        self._outside, self._users, self._is_held = 0, 1, True

    @property
    def is_over(self) -> bool:
        return not self._users

    @property
    def others_call(self) -> bool:
        """Whether other agents called in the last second."""
        return self._admission.several_call()

    def end(self) -> None:
        self._users -= 1
        if not self._users:
            self._admission.ended()
            self._leave()

    @contextmanager
    def shared(self) -> Generator[Slot]:
        """Keep the slot until its request and this block have both ended."""
        self._users += 1
        try:
            yield self
        finally:
            self.end()

    @contextmanager
    def given_back(self) -> Generator[None]:
        """Let other calls use the slot while inside. Afterwards the call goes on at once, even if no slot is free."""
        with self._waiting():
            yield

    @asynccontextmanager
    async def waiting(self) -> AsyncGenerator[None]:
        """Let other calls use the slot while inside. Afterwards the call waits for its agent's turn.

        Thus an event that wakes many calls of one agent does not make them all run at a time.
        """
        with self._waiting(returns=False):
            yield
        if self._must_return():
            await self._admission.enter_in_turn(self._holder)
            self._is_held = self._must_return()
            if not self._is_held:
                self._admission.leave(self._holder)

    @contextmanager
    def _waiting(self, returns: bool = True) -> Generator[None]:
        self._outside += 1
        self._leave()
        try:
            yield
        except BaseException:
            returns = True
            raise
        finally:
            self._outside -= 1
            if returns and self._must_return():
                self._admission.enter_again(self._holder)
                self._is_held = True

    def _leave(self) -> None:
        if self._is_held:
            self._is_held = False
            self._admission.leave(self._holder)

    def _must_return(self) -> bool:
        return bool(self._users) and not self._outside and not self._is_held
