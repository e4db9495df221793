"""Waits until writes are on disk. One WAITAOF serves all calls that wait at the time.

WAITAOF covers only its own connection, so one connection checks that the writes exist, writes a mark after them and
waits for it: the append-only file has one order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from memory_core.cancellation import cancel
from memory_core.errors import MemoryServiceError
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.store.connection import MEMORY, connect, shard_of, store_errors
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import RequestContext, Written

log = logging.getLogger(__name__)
_GATHER_SECONDS = 0.05  # calls that come within so long after a wait began share the next, so that few run at once
_AT_ONCE = 32
_MARK_MS = 60_000
_LOOK_SECONDS = 2.0
_FORGIVE_SECONDS = 60.0  # after replicas did not sync in time, writes do not wait for replicas for so long
_SLOW_REPLICAS = "replicas are too slow, or have no append-only file"


@dataclass(frozen=True, slots=True)
class Reached:
    """Durability level of a write; `unconfirmed` says why it is not known to be synced although it should be."""

    level: str
    unconfirmed: str | None = None


Waiter = tuple[Written, asyncio.Future[Reached]]


class Durability:
    """Waits for the disk, shared by the calls of this process."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._settings = backend.settings.durability
        self._client: Client | None = None
        self._waiting: list[Waiter] = []
        self._pump: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._replicas: dict[Client, tuple[float, int]] = {}
        self._forgiven_until = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Durability]:
        try:
            yield self
        finally:
            await cancel([*self._under_way, *([self._pump] if self._pump else [])])
            if self._client is not None:
                await self._client.aclose()

    async def reached(self, request: RequestContext, written: Written, *, critical: bool) -> Reached:
        """Return the durability of a write, after waiting for the disk if required; a batch waits in `settled`."""
        must_wait = bool(self._settings.wait_seconds) and (critical or self._settings.level == "synced")
        if request.deferred is not None:
            request.deferred.add(written, must_wait)
        if request.deferred is not None or not must_wait:
            return Reached(self._backend.durability)
        with request.without_slot():
            return await self._wait(written)

    async def settled(self, request: RequestContext) -> dict[str, Reached]:
        """Return the durability of each memory of a batch. If one write must wait, all do."""
        if request.deferred is None or not request.deferred.wait:
            return {}
        writes = list(request.deferred.written.values())
        with request.without_slot():
            reached = await asyncio.gather(*map(self._wait, writes))
        return {written.memory_id: one for written, one in zip(writes, reached, strict=True)}

    async def _wait(self, written: Written) -> Reached:
        future: asyncio.Future[Reached] = asyncio.get_running_loop().create_future()
        self._waiting.append((written, future))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._go())
        return await future

    async def _go(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            task = asyncio.create_task(self._sync(group))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            await asyncio.wait({task}, timeout=_GATHER_SECONDS)
            while len(self._under_way) >= _AT_ONCE:
                await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)

    async def _sync(self, group: Sequence[Waiter]) -> None:
        shards: dict[Client, list[Waiter]] = {}
        for waiter in group:
            try:
                async with store_errors():
                    shard = await shard_of(self._connected(), [Keys(waiter[0].namespace).mark])
            except MemoryServiceError as error:
                _answer([waiter], [self._unconfirmed(error.message)])
            else:
                shards.setdefault(shard, []).append(waiter)
        await asyncio.gather(*(self._sync_on(shard, part) for shard, part in shards.items()))

    async def _sync_on(self, shard: Client, group: Sequence[Waiter]) -> None:
        try:
            answers = await self._mark(shard, [written for written, _ in group])
        except MemoryServiceError as error:
            answers = [self._unconfirmed(error.message)] * len(group)
        except Exception:
            log.exception("a wait for the disk failed")
            answers = [self._unconfirmed("an unexpected error; see the server's log")] * len(group)
        _answer(group, answers)

    async def _mark(self, shard: Client, writes: Sequence[Written]) -> list[Reached]:
        """Check that the writes exist, write a mark after them and wait until the mark is on disk."""
        wait, replicas = self._settings.wait_seconds, await self._replicas_to_wait_for(shard)
        pipe = shard.pipeline(transaction=False)
        for one in writes:
            pipe.hget(Keys(one.namespace).memory(one.memory_id), "rev")
        pipe.set(Keys(writes[0].namespace).mark, b"", px=_MARK_MS)
        pipe.execute_command("WAITAOF", 1, replicas, max(1, round(wait * 1000)))
        async with store_errors(deadline=wait + self._backend.settings.redis.timeout_seconds):
            answers: list[Any] = await pipe.execute(raise_on_error=False)
            if "appendonly is disabled" in str(answers[-1]):
                return [Reached(MEMORY)] * len(writes)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        *revs, _, (local, remote) = answers
        reached = self._reached(local, remote, replicas)
        gone = self._unconfirmed("it is gone: deleted since, or lost by Redis")
        return [reached if int(rev or 0) >= one.rev else gone for one, rev in zip(writes, revs, strict=True)]

    def _reached(self, local: int, remote: int, expected: int) -> Reached:
        within = f"within {self._settings.wait_seconds:g} s"
        if not local:
            return self._unconfirmed(f"Redis did not sync it {within}; it will later")
        if remote < expected:
            self._forgiven_until = time.monotonic() + _FORGIVE_SECONDS
            log.warning("%d replicas did not sync %s; is their append-only file on?", expected - remote, within)
        replicas = f"+{remote} replica{'s' if remote > 1 else ''}" if remote else ""
        return Reached(f"synced{replicas}", _SLOW_REPLICAS if self._forgives() else None)

    def _unconfirmed(self, why: str) -> Reached:
        return Reached(self._backend.durability, why)

    def _forgives(self) -> bool:
        return time.monotonic() < self._forgiven_until

    async def _replicas_to_wait_for(self, shard: Client) -> int:
        if not self._settings.replicas or self._forgives():
            return 0
        looked_at, number = self._replicas.get(shard, (-_LOOK_SECONDS, 0))
        if time.monotonic() - looked_at >= _LOOK_SECONDS:
            async with store_errors():
                info = await shard.info("replication")
            number = sum(isinstance(one, dict) and one.get("state") == "online" for one in info.values())
            self._replicas[shard] = time.monotonic(), number
        return min(number, self._settings.replicas)

    def _connected(self) -> Client:
        if self._client is None:
            self._client = connect(self._backend.url)
        return self._client


def _answer(group: Sequence[Waiter], answers: Sequence[Reached]) -> None:
    for (_, future), answer in zip(group, answers, strict=True):
        if not future.done():
            future.set_result(answer)
