"""Composes the sidecar: its stream readers, background loops and shutdown."""

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

from memory_core.crypto.sealing import Transports
from memory_core.errors import InvalidArgument
from memory_core.records import keys
from memory_core.records.ids import new_id
from memory_core.redis_client import Client
from memory_core.store import sidecar
from memory_core.store.connection import check_server, connect, store_errors
from memory_core.store.sidecar import SidecarStatus
from memory_core.store.streams import entries
from memory_embedder.bulk.requests import BulkConsumer
from memory_embedder.devices.nvml import GpuReading, open_nvidia_reader
from memory_embedder.devices.rocm import open_amd_reader
from memory_embedder.engines.encoder import Encoder
from memory_embedder.streams import groups
from memory_embedder.streams.asks import AskConsumer
from memory_embedder.streams.backlog import HeldJobs
from memory_embedder.streams.inference import InferenceLoop
from memory_embedder.streams.jobs import JobConsumer
from memory_embedder.streams.namespaces import KnownNamespaces
from memory_embedder.streams.outbox import Outbox
from memory_embedder.streams.retry import forever, may_pass, pause, retry
from memory_embedder.streams.throughput import Throughput

_log = logging.getLogger(__name__)
_COMMITTERS = 2
_WAKEUPS_BEFORE_START_MS = 5_000
_WAKEUPS_AT_ONCE = 256
_BLOCK_GRACE_SECONDS = 5.0
_RECLAIM_AGAIN_SECONDS = 0.05
_RECLAIM_SECONDS = 0.5
"""Pause between scans for entries of dead sidecars. An entry must be claimed within a second of its lease."""
_DEAD_AFTER_SECONDS = 60.0
_FOLLOW_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class SidecarOptions:
    """Times in seconds, and what the sidecar may do.

    Other sidecars may claim a job after `lease`. `scan` and `heartbeat` are intervals; `block` is the longest
    blocking read. `bulk_bytes` is the memory of the bulk engine, 0 for none. With `standby` the sidecar starts even
    if no namespace uses its model yet, and waits for a change of model.
    """

    lease: float = 10.0
    scan: float = 3.0
    heartbeat: float = sidecar.HEARTBEAT_SECONDS
    block: float = 1.0
    bulk_bytes: int = 1 << 30
    standby: bool = False


class Sidecar:
    """One sidecar on one event loop. `encoder` runs in threads."""

    def __init__(
        self, url: str, encoder: Encoder, options: SidecarOptions | None = None, transports: Transports | None = None
    ) -> None:
        self.id = f"{socket.gethostname().lower()[:40]}-{os.getpid()}-{new_id()[-6:]}"
        self._url = url
        self._options = options or SidecarOptions()
        self._client = connect(url, timeout=5.0)
        self._encoder = encoder
        self._transports = transports or Transports()
        self.throughput = Throughput()
        self._stopping = asyncio.Event()
        self._readers_done = asyncio.Event()
        self._work_arrived = asyncio.Event()
        self._replies = Outbox("replies", self._stopping)
        self._commits = Outbox("commits", self._stopping)
        self._namespaces = KnownNamespaces(self._client, encoder)
        held = HeldJobs(self.throughput)
        self.asks = AskConsumer(self._client, encoder, self._replies, self.id, self._work_arrived, self._transports)
        self.jobs = JobConsumer(
            self._client, encoder, held, self._commits, self.id, self._work_arrived, self._transports
        )
        self._bulk: BulkConsumer | None = None
        if self._options.bulk_bytes:
            self._bulk = BulkConsumer(
                self._client, encoder, self._replies, self.id, self._options.bulk_bytes, self._transports
            )
        self.inference = InferenceLoop(encoder, self.asks, self.jobs, self.throughput, self._work_arrived)
        self._gpu = open_nvidia_reader(encoder.device) or open_amd_reader(encoder.device)
        self._state = "starting"
        self._started_at = time.time()
        self._wakeups: dict[int, bytes] = {}

    async def run(self, stopping: asyncio.Event | None = None) -> None:
        """Serve until `stopping` is set, through outages of Redis, also at the start.

        Raises:
            UnsafeStart, ModelMismatch, InvalidArgument: the sidecar must not serve this Redis.
            EncoderBroken: the engine fails on every text.
        """
        follow = asyncio.create_task(self._follow(stopping)) if stopping else None
        try:
            await self._start()
            if not self._stopping.is_set():
                await self._serve()
        except Exception as error:
            cause = _first_cause(error)
            if not (self._stopping.is_set() and may_pass(cause)):
                raise cause from None
        finally:
            if follow:
                follow.cancel()
            await self._leave()

    def stop(self) -> None:
        """End `run` after the current micro-batch."""
        self._state = "stopping"
        self._stopping.set()
        for event in (self._work_arrived, self._namespaces.changed, self.jobs.has_room):
            event.set()

    @property
    def fallback(self) -> str:
        """Why the sidecar does not use the requested device. Empty if it does."""
        return self._encoder.fallback

    @property
    def refused(self) -> int:
        """Number of namespaces left to sidecars of another model."""
        return self._namespaces.refused

    def read_gpu(self) -> GpuReading | None:
        """Read the GPU that the engine uses, if any."""
        return self._gpu.read() if self._gpu else None

    def status(self) -> SidecarStatus:
        """The state that the heartbeat publishes."""
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
            batch_tokens=self.throughput.budget,
            texts_per_second=round(self.throughput.texts_per_second(), 1),
            texts_total=self.throughput.texts_total,
            asks_total=self.throughput.asks_total,
            queue_depth=max(self._namespaces.queue_depth, len(self.jobs.held_jobs)),
            bulk=self._bulk.status() if self._bulk else None,
            started_at=self._started_at,
            transport_keys=self._transports.ids,
        )

    async def _follow(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self.stop()

    async def _start(self) -> None:
        try:
            await retry("start", self._stopping, partial(check_server, self._client))
        except redis_errors.AuthenticationError as error:
            raise InvalidArgument("Redis refuses the user or password", hint="correct REDIS_URL") from error
        check = partial(self._namespaces.check_all, standby=self._options.standby)
        await retry("start", self._stopping, check, may_pass)
        await retry("start", self._stopping, self._beat, may_pass)
        await self.inference.warm_up()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:

            def start(part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                return tasks.create_task(self._guard(part))

            for outbox in (self._replies, *[self._commits] * _COMMITTERS):
                start(outbox.work())
            inference = start(self.inference.run(self._stopping, self._readers_done))
            readers = [
                start(self._read("asks", self.asks, keys.asks(lane, self._encoder.name))) for lane in range(keys.LANES)
            ]
            for lane in range(keys.LANES):
                start(self._read_wakeups(lane))
            if self._bulk:
                start(self._run_bulk(self._bulk))
            self._state = "ready"
            for name, step in self._loops().items():
                start(forever(name, self._stopping, step))
            await self._stopping.wait()
            await asyncio.wait(readers)
            self._readers_done.set()
            self._work_arrived.set()
            await inference
            self._replies.close()
            self._commits.close()

    async def _guard(self, part: Coroutine[Any, Any, None]) -> None:
        """Stop the whole sidecar when one part fails.

        The task group alone is not enough: on Python 3.11 redis-py calls `asyncio.wait_for`, which can lose a
        cancellation. So each part also gets its own stop signal.
        """
        try:
            await part
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
            "scan": self._every(options.scan, self._namespaces.scan),
            "reclaim": self._reclaim,
            "clock skew": self._every(options.lease, self._reclaim_skewed),
            "held jobs": self._every(options.lease / 4, partial(self.jobs.renew, options.lease / 2)),
            "consumers": self._every(_DEAD_AFTER_SECONDS, self._remove_dead_consumers),
        }

    def _every(self, seconds: float, step: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[None]]:
        async def stepped() -> None:
            await step()
            await pause(self._stopping, seconds)

        return stepped

    async def _beat(self) -> None:
        await sidecar.announce(self._client, self.status())

    async def _feed(self) -> None:
        """Read jobs of the next namespace, as many as there is room for."""
        names = self._namespaces.take()
        if names is None:
            await self._namespaces.changed.wait()
            return
        more = True
        try:
            if not self.jobs.held_jobs.room():
                self.jobs.has_room.clear()
                await self.jobs.has_room.wait()
            if not self._stopping.is_set():
                more = await self.jobs.read(names)
        finally:
            if more:
                self._namespaces.put_back(names)

    async def _reclaim(self) -> None:
        """Claim the entries of dead sidecars, and again soon while there are more."""
        lease = self._options.lease
        await self.asks.reclaim(int(lease * 1000))
        more = False
        for names in self._namespaces.pending:
            more |= await self.jobs.reclaim(names, int(lease * 1000))
        await pause(self._stopping, _RECLAIM_AGAIN_SECONDS if more else min(lease / 2, _RECLAIM_SECONDS))

    async def _reclaim_skewed(self) -> None:
        for names in self._namespaces.pending:
            await self.jobs.reclaim_skewed(names)

    async def _remove_dead_consumers(self) -> None:
        model = self._encoder.name
        lanes = [stream for lane in range(keys.LANES) for stream in (keys.asks(lane, model), keys.bulk(lane, model))]
        for stream in lanes + [names.jobs(model) for names in self._namespaces.served]:
            await groups.remove_dead_consumers(self._client, stream, idle_ms=int(_DEAD_AFTER_SECONDS * 1000))

    async def _read(self, name: str, consumer: AskConsumer | BulkConsumer, stream: str) -> None:
        block = int(self._options.block * 1000)
        async with self._reader() as reader:
            await forever(name, self._stopping, partial(consumer.read, reader, stream, block))

    async def _run_bulk(self, bulk: BulkConsumer) -> None:
        """Answer bulk requests. They have their own connections, so that asks do not wait behind them."""
        follow = self._every(_FOLLOW_SECONDS, bulk.keep_up)
        reclaim = self._every(self._options.lease, partial(bulk.reclaim, int(self._options.lease * 1000)))
        try:
            async with asyncio.TaskGroup() as tasks:
                for lane in range(keys.LANES):
                    tasks.create_task(self._read("bulk", bulk, keys.bulk(lane, self._encoder.name)))
                tasks.create_task(forever("mirrors", self._stopping, follow))
                tasks.create_task(forever("bulk reclaim", self._stopping, reclaim))
        finally:
            await bulk.close()

    async def _read_wakeups(self, lane: int) -> None:
        async with self._reader() as reader:
            await forever("wake-ups", self._stopping, partial(self._read_wakeup, reader, lane))

    async def _read_wakeup(self, reader: Client, lane: int) -> None:
        if lane not in self._wakeups:
            seconds, _ = await self._client.time()
            self._wakeups[lane] = b"%d-0" % (seconds * 1000 - _WAKEUPS_BEFORE_START_MS)
        answer = await reader.xread(
            {keys.bell(lane): self._wakeups[lane]}, count=_WAKEUPS_AT_ONCE, block=int(self._options.block * 1000)
        )
        for _, entry, fields in entries(answer):
            await self._namespaces.wake(fields.get(b"ns", b"").decode(errors="replace"))
            self._wakeups[lane] = entry

    def _reader(self) -> Client:
        """A separate connection for a blocking read. Its deadline notices a dead peer."""
        return connect(self._url, timeout=self._options.block + _BLOCK_GRACE_SECONDS)

    async def _leave(self) -> None:
        """Release held jobs, withdraw the heartbeat and close. Skipped if Redis is unreachable."""
        try:
            async with store_errors(), asyncio.timeout(_BLOCK_GRACE_SECONDS):
                await self.jobs.release()
                await sidecar.withdraw(self._client, self.id)
        except Exception as error:  # nothing may prevent the shutdown
            _log.warning("stopped without withdrawing: %s", type(error).__name__)
        finally:
            await self._client.aclose()


def _first_cause(error: BaseException) -> BaseException:
    """The first error in a group of errors."""
    return _first_cause(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _process_usage() -> GpuReading:
    """Without a GPU: the resident memory of this process (None if unknown) and the memory of the machine."""
    statm = Path("/proc/self/statm")
    page = os.sysconf("SC_PAGE_SIZE")
    used = int(statm.read_text().split()[1]) * page if statm.exists() else None
    return GpuReading(memory_used=used, memory_total=page * os.sysconf("SC_PHYS_PAGES"))
