"""Puts the sidecar together: who reads which stream, what runs beside what, and how it stops."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redis import exceptions as redis_errors

from memory_core import keys, sidecars
from memory_core.connection import Client, check_server, connect, store_errors
from memory_core.errors import InvalidArgument
from memory_core.ids import new_id
from memory_core.sealing import Transports
from memory_core.sidecars import SidecarStatus
from memory_core.streams import entries
from memory_embedder.bulk.requests import BulkDesk
from memory_embedder.devices import rocm
from memory_embedder.devices.nvml import GpuReading, open_reader
from memory_embedder.engines.encoder import Encoder
from memory_embedder.streams import groups
from memory_embedder.streams.asks import AskDesk
from memory_embedder.streams.backlog import Holdings
from memory_embedder.streams.inference import Engine
from memory_embedder.streams.jobs import JobDesk
from memory_embedder.streams.namespaces import Namespaces
from memory_embedder.streams.outbox import Outbox
from memory_embedder.streams.retry import forever, is_outage, pause, persist
from memory_embedder.streams.throughput import Load

_log = logging.getLogger(__name__)
_COMMITTERS = 2
_BELLS_BEFORE_START_MS = 5_000
_BELLS_AT_ONCE = 256
_BLOCK_GRACE = 5.0
_HURRY = 0.05
_RECOVER_SECONDS = 0.5
"""Between looks for what dead sidecars left: well within the second after its lease in which it is to be taken over."""
_DEAD_AFTER = 60.0
_FOLLOW_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """Times in seconds: after which others take a job over, between walks, heartbeats, and of a blocking read.

    `bulk_bytes` is the memory of the bulk engine; 0 for none. One that is started `beside` others may be of a model
    that no namespace has yet: it waits for a change of model.
    """

    lease: float = 10.0
    walk: float = 3.0
    heartbeat: float = sidecars.HEARTBEAT_SECONDS
    block: float = 1.0
    bulk_bytes: int = 1 << 30
    beside: bool = False


class Sidecar:
    """One sidecar on one event loop; `encoder` works in threads."""

    def __init__(
        self, url: str, encoder: Encoder, options: Options | None = None, transports: Transports | None = None
    ) -> None:
        self.id = f"{socket.gethostname().lower()[:40]}-{os.getpid()}-{new_id()[-6:]}"
        self._url = url
        self._options = options or Options()
        self._client = connect(url, timeout=5.0)
        self._encoder = encoder
        self._transports = transports or Transports()
        self.load = Load()
        self._stopping = asyncio.Event()
        self._readers_done = asyncio.Event()
        self._arrived = asyncio.Event()
        self._replies = Outbox("replies", self._stopping)
        self._commits = Outbox("commits", self._stopping)
        self._namespaces = Namespaces(self._client, encoder)
        held = Holdings(self.load)
        self.asks = AskDesk(self._client, encoder, self._replies, self.id, self._arrived, self._transports)
        self.jobs = JobDesk(self._client, encoder, held, self._commits, self.id, self._arrived, self._transports)
        self._bulk: BulkDesk | None = None
        if self._options.bulk_bytes:
            self._bulk = BulkDesk(
                self._client, encoder, self._replies, self.id, self._options.bulk_bytes, self._transports
            )
        self.engine = Engine(encoder, self.asks, self.jobs, self.load, self._arrived)
        self._gpu = open_reader(encoder.device) or rocm.open_reader(encoder.device)
        self._state = "starting"
        self._started_at = time.time()
        self._bells: dict[int, bytes] = {}

    async def run(self, stopping: asyncio.Event | None = None) -> None:
        """Serve until `stopping` is set; Redis may come late, go and come back meanwhile.

        Raises:
            UnsafeStart, ModelMismatch, InvalidArgument: it must not serve this Redis.
            EncoderBroken: the engine fails on every text.
        """
        follow = asyncio.create_task(self._follow(stopping)) if stopping else None
        try:
            await self._start()
            if not self._stopping.is_set():
                await self._serve()
        except Exception as error:
            cause = _first(error)
            if not (self._stopping.is_set() and is_outage(cause)):
                raise cause from None
        finally:
            if follow:
                follow.cancel()
            await self._leave()

    def stop(self) -> None:
        """End `run` after the present micro-batch."""
        self._state = "stopping"
        self._stopping.set()
        for event in (self._arrived, self._namespaces.changed, self.jobs.has_room):
            event.set()

    @property
    def fallback(self) -> str:
        """Why another device than the wanted one computes; empty if that one does."""
        return self._encoder.fallback

    @property
    def refused(self) -> int:
        """How many namespaces are left to sidecars of another model."""
        return self._namespaces.refused

    def read_gpu(self) -> GpuReading | None:
        """Read the GPU that computes, if one does."""
        return self._gpu.read() if self._gpu else None

    def status(self) -> SidecarStatus:
        """Describe this sidecar as its heartbeat does."""
        encoder = self._encoder
        usage = self.read_gpu() or _process_usage()
        return SidecarStatus(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            state=self._state,
            model=encoder.name,
            dimension=encoder.dimension,
            backend=encoder.backend,
            device=encoder.device,
            provider=encoder.provider,
            fallback="; ".join(filter(None, [encoder.fallback, self._namespaces.refusals])),
            memory_used=usage.memory_used,
            memory_total=usage.memory_total,
            utilisation=usage.utilisation,
            temperature=usage.temperature,
            power=usage.power,
            batch_tokens=self.load.budget,
            texts_per_second=round(self.load.texts_per_second(), 1),
            texts_total=self.load.texts_total,
            asks_total=self.load.asks_total,
            queue_depth=max(self._namespaces.queue_depth, len(self.jobs.holdings)),
            bulk=self._bulk.status() if self._bulk else None,
            started_at=self._started_at,
            transport_keys=self._transports.ids,
        )

    async def _follow(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self.stop()

    async def _start(self) -> None:
        try:
            await persist("start", self._stopping, partial(check_server, self._client))
        except redis_errors.AuthenticationError as error:
            raise InvalidArgument("Redis refuses the user or password", hint="correct REDIS_URL") from error
        await persist("start", self._stopping, partial(self._namespaces.check_all, beside=self._options.beside))
        await persist("start", self._stopping, self._beat)
        await self.engine.warm_up()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:

            def begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                return tasks.create_task(self._guard(work))

            for outbox in (self._replies, *[self._commits] * _COMMITTERS):
                begin(outbox.work())
            engine = begin(self.engine.run(self._stopping, self._readers_done))
            readers = [begin(self._read_asks(lane)) for lane in range(keys.LANES)]
            for lane in range(keys.LANES):
                begin(self._read_bells(lane))
            if self._bulk:
                begin(self._run_bulk(self._bulk))
            self._state = "ready"
            for what, step in self._loops().items():
                begin(forever(what, self._stopping, step))
            await self._stopping.wait()
            await asyncio.wait(readers)
            self._readers_done.set()
            self._arrived.set()
            await engine
            self._replies.close()
            self._commits.close()

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Stop all of the sidecar when one part fails.

        The task group alone would not do: on Python 3.11 a cancellation can get lost in redis-py, which
        calls `asyncio.wait_for`, so each part must also be told in its own way.
        """
        try:
            await work
        except BaseException:
            self.stop()
            self._replies.close()
            self._commits.close()
            raise

    def _loops(self) -> dict[str, Callable[[], Awaitable[None]]]:
        options = self._options
        return {
            "heartbeat": self._every(options.heartbeat, self._beat),
            "feeder": self._feed,
            "walk": self._every(options.walk, self._namespaces.walk),
            "recovery": self._recover,
            "strays": self._every(options.lease, self._take_strays),
            "holdings": self._every(options.lease / 4, partial(self.jobs.keep, options.lease / 2)),
            "reaper": self._every(_DEAD_AFTER, self._reap),
        }

    def _every(self, seconds: float, step: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[None]]:
        async def stepped() -> None:
            await step()
            await pause(self._stopping, seconds)

        return stepped

    async def _beat(self) -> None:
        await sidecars.announce(self._client, self.status())

    async def _feed(self) -> None:
        """Read the next namespace in turn, as far as there is room."""
        names = self._namespaces.take()
        if names is None:
            await self._namespaces.changed.wait()
            return
        more = True
        try:
            if not self.jobs.holdings.room():
                self.jobs.has_room.clear()
                await self.jobs.has_room.wait()
            if not self._stopping.is_set():
                more = await self.jobs.read(names)
        finally:
            if more:
                self._namespaces.put_back(names)

    async def _recover(self) -> None:
        """Take over what dead sidecars left; come back soon while they left more."""
        lease = self._options.lease
        await self.asks.recover(int(lease * 1000))
        more = False
        for names in self._namespaces.with_jobs:
            more |= await self.jobs.recover(names, int(lease * 1000))
        await pause(self._stopping, _HURRY if more else min(lease / 2, _RECOVER_SECONDS))

    async def _take_strays(self) -> None:
        for names in self._namespaces.with_jobs:
            await self.jobs.take_strays(names)

    async def _reap(self) -> None:
        model = self._encoder.name
        lanes = [stream for lane in range(keys.LANES) for stream in (keys.asks(lane, model), keys.bulk(lane, model))]
        for stream in lanes + [names.jobs(model) for names in self._namespaces.served]:
            await groups.reap_consumers(self._client, stream, idle_ms=int(_DEAD_AFTER * 1000))

    async def _read_asks(self, lane: int) -> None:
        block = int(self._options.block * 1000)
        async with self._reader() as reader:
            step = partial(self.asks.read, reader, keys.asks(lane, self._encoder.name), block)
            await forever("asks", self._stopping, step)

    async def _run_bulk(self, bulk: BulkDesk) -> None:
        """Answer bulk requests; they are read on connections of their own, since asks must not wait behind them."""
        follow = self._every(_FOLLOW_SECONDS, bulk.keep_up)
        recover = self._every(self._options.lease, partial(bulk.recover, int(self._options.lease * 1000)))
        try:
            async with asyncio.TaskGroup() as tasks:
                for lane in range(keys.LANES):
                    tasks.create_task(self._read_bulk(bulk, lane))
                tasks.create_task(forever("mirrors", self._stopping, follow))
                tasks.create_task(forever("bulk recovery", self._stopping, recover))
        finally:
            await bulk.close()

    async def _read_bulk(self, bulk: BulkDesk, lane: int) -> None:
        block, stream = int(self._options.block * 1000), keys.bulk(lane, self._encoder.name)
        async with self._reader() as reader:
            await forever("bulk", self._stopping, partial(bulk.read, reader, stream, block))

    async def _read_bells(self, lane: int) -> None:
        async with self._reader() as reader:
            await forever("bells", self._stopping, partial(self._hear, reader, lane))

    async def _hear(self, reader: Client, lane: int) -> None:
        if lane not in self._bells:
            seconds, _ = await self._client.time()
            self._bells[lane] = b"%d-0" % (seconds * 1000 - _BELLS_BEFORE_START_MS)
        answer = await reader.xread(
            {keys.bell(lane): self._bells[lane]}, count=_BELLS_AT_ONCE, block=int(self._options.block * 1000)
        )
        for _, entry, fields in entries(answer):
            await self._namespaces.ring(fields.get(b"ns", b"").decode(errors="replace"))
            self._bells[lane] = entry

    def _reader(self) -> Client:
        """A connection of its own for a blocking read, whose deadline notices a peer that is gone for good."""
        return connect(self._url, timeout=self._options.block + _BLOCK_GRACE)

    async def _leave(self) -> None:
        """Hand back what is held, withdraw and close; a Redis that is away is left as it is."""
        try:
            async with store_errors(), asyncio.timeout(_BLOCK_GRACE):
                await self.jobs.hand_back()
                await sidecars.withdraw(self._client, self.id)
        except Exception as error:
            _log.warning("left without withdrawing: %s", type(error).__name__)
        finally:
            await self._client.aclose()


def _first(error: BaseException) -> BaseException:
    """The first error that is not a group."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _process_usage() -> GpuReading:
    """Without a GPU of its own: resident bytes of this process (None where the system does not say) of all memory."""
    statm = Path("/proc/self/statm")
    page = os.sysconf("SC_PAGE_SIZE")
    used = int(statm.read_text().split()[1]) * page if statm.exists() else None
    return GpuReading(memory_used=used, memory_total=page * os.sysconf("SC_PHYS_PAGES"))
