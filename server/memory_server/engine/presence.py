"""Records which agents call, so that calls keep agents alive and renew the leases of their sessions.

Calls are collected and written together. Redis says how soon the next calls of a session need recording, so a busy
agent costs few writes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from memory_core.cancellation import cancel
from memory_core.errors import MemoryServiceError
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys, digest
from memory_core.slices import slices

if TYPE_CHECKING:
    from memory_server.engine.redis_backend import Backend

log = logging.getLogger(__name__)
_TOGETHER_SECONDS = 0.02
_UNKNOWN_SECONDS = 1.0
"""How soon calls of an agent that is not registered, or could not be recorded, are recorded again."""
_AT_ONCE = 100
_SESSIONS_KEPT = 10_000
_ENDING_SECONDS = 2.0


class AgentSession(NamedTuple):
    """One client session of an agent."""

    namespace: str
    agent: str
    session: str


def session_id(kind: str, name: str) -> str:
    """Make the opaque id of a session from what identifies it on one kind of connection."""
    return digest(f"{kind} {name}")


class Presence:
    """The calls of agents' sessions that are not recorded in Redis yet."""

    def __init__(self) -> None:
        self.process_session = session_id("process", new_id())
        """The session of the one client of a stdio server."""
        self.stdio_caller: tuple[str, str] | None = None
        """Namespace and agent of that client, if the server was started with the agent's name."""
        self.killed: list[str] = []
        """Sessions of killed stdio servers of the same client, not ended in Redis yet."""
        self._called: dict[AgentSession, float] = {}
        self._running: Counter[AgentSession] = Counter()
        self._next: OrderedDict[AgentSession, float] = OrderedDict()
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._backend: Backend | None = None

    @asynccontextmanager
    async def running(self, backend: Backend) -> AsyncGenerator[None]:
        """Record calls until left, and then end the session of a stdio client."""
        self._backend = backend
        flusher = asyncio.create_task(self._flush_forever())
        try:
            yield
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(_ENDING_SECONDS), self._writing:  # a record under way is written first
                    await cancel([flusher])
            await cancel([flusher])
            await self.end(self.process_session)

    async def end_killed(self) -> None:
        """Before the first call: end the sessions of killed stdio servers of this agent, so that it has its work."""
        if self.stdio_caller is None:
            return
        for session in list(self.killed):
            await self._end(AgentSession(*self.stdio_caller, session))
            with suppress(ValueError):  # another first call ended it too
                self.killed.remove(session)

    @contextmanager
    def call(self, one: AgentSession) -> Generator[None]:
        """Note a call when it begins and ends, and in between: an agent that waits for an answer is not silent."""
        self.note(one)
        self._running[one] += 1
        try:
            yield
        finally:
            self._running[one] -= 1
            if not self._running[one]:
                del self._running[one]
            self.note(one)

    def note(self, one: AgentSession) -> None:
        """Note a call. Callers without a session are no agents at work."""
        if one.session:
            if one not in self._called:
                self._wake.set()
            self._called[one] = time.monotonic()

    def renew(self, one: AgentSession) -> None:
        """Record the next call immediately, because the agent's registration or leases changed."""
        self._next.pop(one, None)
        self._wake.set()

    async def end(self, session: str, *callers: tuple[str, str]) -> None:
        """Forget a session that its client ended, of the callers that used it here and of those given."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_ENDING_SECONDS), self._writing:
                await self._end_all(session, callers)

    async def _end_all(self, session: str, callers: Sequence[tuple[str, str]]) -> None:
        known = {one for one in (*self._next, *self._called) if one.session == session}
        for one in known:
            self._called.pop(one, None)
            self._next.pop(one, None)
        for namespace, agent in {(one.namespace, one.agent) for one in known} | set(callers):
            await self._end(AgentSession(namespace, agent, session))

    async def _end(self, one: AgentSession) -> None:
        if self._backend is None:
            return
        key = Keys(one.namespace).agent(one.agent)
        try:
            await self._backend.write(
                "rm1_agent_session_ended", [key], repeatable=True, agent=one.agent, session=one.session
            )
        except MemoryServiceError as error:
            log.warning("the end of a session of %s was not recorded: %s", one.agent, error.message)

    async def _flush_forever(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            await asyncio.sleep(_TOGETHER_SECONDS)
            self._wake.clear()
            try:
                await self.flush()
            except Exception:
                log.exception("calls of agents were not recorded")

    def _pause(self) -> float | None:
        """The seconds until something is to be recorded; None if there is nothing."""
        waiting = [self._next.get(one, 0.0) for one in (*self._called, *self._running) if one.session]
        return max(min(waiting) - time.monotonic(), 0.0) if waiting else None

    async def flush(self) -> None:
        """Record the calls whose time has come."""
        async with self._writing:
            now = time.monotonic()
            self._called |= {one: now for one in self._running if one.session}
            due: defaultdict[str, list[AgentSession]] = defaultdict(list)
            for one in self._called:
                if self._next.get(one, 0.0) <= now:
                    due[one.namespace].append(one)
            for namespace, sessions in due.items():
                for part in slices(sessions, _AT_ONCE):
                    await self._record(namespace, part)
            while len(self._next) > _SESSIONS_KEPT:
                self._next.popitem(last=False)

    async def _record(self, namespace: str, sessions: Sequence[AgentSession]) -> None:
        assert self._backend is not None
        keys, left = Keys(namespace), list(sessions)
        while left:
            now = time.monotonic()
            items = [
                {"agent": one.agent, "session": one.session, "ago": now - self._called.pop(one, now)} for one in left
            ]
            try:
                answer = await self._backend.write("rm1_agent_seen", [keys.agents], repeatable=True, items=items)
                pauses = [float(pause) for pause in answer["pauses"]]
            except MemoryServiceError as error:
                log.warning("calls of %d agents were not recorded: %s", len(left), error.message)
                pauses = [-1.0] * len(left)
            now = time.monotonic()
            for one, pause in zip(left, pauses, strict=False):
                self._next[one] = now + (pause if pause >= 0 else _UNKNOWN_SECONDS)
                self._next.move_to_end(one)
            left = left[len(pauses) :]
