"""The event streams of this process: reads the streams of the namespaces that have listeners, in one blocking read.

On a single Redis one reader serves all namespaces. On a cluster each namespace with listeners has its own reader,
because no read crosses slots. Without listeners a reader sleeps. A listener in another namespace interrupts the
blocked read; there is no polling.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

from redis.exceptions import RedisError

from memory_core.cancellation import cancel
from memory_core.errors import MemoryServiceError
from memory_core.records.keys import Keys
from memory_core.records.vectors import from_stored
from memory_core.redis_client import Client
from memory_core.store.connection import connect
from memory_core.store.streams import BadMessage, entries
from memory_server.engine.known_models import KnownModels
from memory_server.engine.redis_backend import Backend
from memory_server.events.entries import MEMORY, EventEntry, Position
from memory_server.events.listeners import Audience, Follower, Waiter

log = logging.getLogger(__name__)
_MAX_IDLE = 32
_BLOCK_MS = 5000
_BATCH = 256
_RECONNECT_SECONDS = 0.2
_INTERRUPT_SECONDS = 0.002


class Hub:
    """Offers every event to the listeners of its namespace, once and in order."""

    def __init__(self, backend: Backend, models: KnownModels) -> None:
        self._backend = backend
        self._models = models
        self._readers: dict[str, tuple[_Reader, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Hub]:
        """Serve listeners while the block runs."""
        try:
            yield self
        finally:
            self.close()
            await cancel([*(task for _, task in self._readers.values()), *self._ending])

    def close(self) -> None:
        """End all waits because the server stops."""
        self._closed = True
        for reader, _ in self._readers.values():
            reader.close()

    def count(self, namespace: str) -> int:
        found = self._readers.get(self._name(namespace))
        return found[0].count(namespace) if found else 0

    @contextmanager
    def listening(self, namespace: str, listener: Waiter | Follower, at: Position) -> Generator[Audience]:
        """Offer a listener the events after `at`, the latest known end of the stream."""
        name = self._name(namespace)
        if name not in self._readers:
            self._end_idle()
            reader = _Reader(self._backend, self._models)
            self._readers[name] = reader, asyncio.create_task(reader.run(), name="events")
        reader, _ = self._readers[name]
        if self._closed:
            reader.close()
        with reader.listening(namespace, listener, at) as audience:
            yield audience

    def _end_idle(self) -> None:
        """Close readers without listeners once there are many. Listeners often return, so a few stay."""
        idle = [name for name, (reader, _) in self._readers.items() if not reader.count(name)]
        for name in idle if len(idle) > _MAX_IDLE else ():
            reader, task = self._readers.pop(name)
            reader.close()
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _name(self, namespace: str) -> str:
        return namespace if self._backend.is_scattered else ""


class _Reader:
    def __init__(self, backend: Backend, models: KnownModels) -> None:
        self._backend = backend
        self._models = models
        self._audiences: dict[str, Audience] = {}
        self._occupied = asyncio.Event()
        self._blocked_on: frozenset[str] | None = None
        self._client_id = 0
        self._interrupting: asyncio.Task[None] | None = None
        self._closed = False
        self._missed = False

    def close(self) -> None:
        self._closed = True
        for audience in self._audiences.values():
            audience.close()

    def count(self, namespace: str) -> int:
        return len(self._audiences.get(namespace, ()))

    @contextmanager
    def listening(self, namespace: str, listener: Waiter | Follower, at: Position) -> Generator[Audience]:
        audience = self._audiences.setdefault(namespace, Audience(at))
        audience.add(listener)
        if self._closed:
            listener.close()
        self._occupied.set()
        if self._blocked_on is not None and namespace not in self._blocked_on and not self._interrupting:
            self._interrupting = asyncio.create_task(self._interrupt())
        try:
            yield audience
        finally:
            audience.remove(listener)

    async def _interrupt(self) -> None:
        """Unblock the read until it covers all audiences: the first unblock may come just before it blocks."""
        try:
            client = await self._backend.client()
            while self._blocked_on is not None and not self._blocked_on >= self._audiences.keys():
                with suppress(RedisError, OSError):
                    await client.client_unblock(self._client_id)
                await asyncio.sleep(_INTERRUPT_SECONDS)
        except MemoryServiceError:
            pass  # the reader has lost its connection too, and reconnects with all audiences
        finally:
            self._interrupting = None

    async def run(self) -> None:
        """Read until closed. The first listener opens the connection."""
        try:
            await self._read_until_closed()
        finally:
            if self._interrupting:
                await cancel([self._interrupting])

    async def _read_until_closed(self) -> None:
        while not self._closed:
            await self._occupied.wait()
            try:
                await self._backend.client()
                async with connect(self._backend.url, timeout=_BLOCK_MS / 1000 + 5) as client:
                    await self._read(client)
            except (RedisError, OSError, MemoryServiceError) as error:
                log.warning("event streams cannot be read: %s", type(error).__name__)
            except Exception:
                log.exception("event streams cannot be read")
            self._missed = True
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _read(self, client: Client) -> None:
        self._client_id = await client.client_id()
        for audience in self._audiences.values() if self._missed else ():
            audience.lose()
        self._missed = False
        while not self._closed:
            self._audiences = {namespace: audience for namespace, audience in self._audiences.items() if len(audience)}
            if not self._audiences:
                self._occupied.clear()
                await self._occupied.wait()
                continue
            streams = {Keys(namespace).events: audience.position.id for namespace, audience in self._audiences.items()}
            names = {Keys(namespace).events.encode(): namespace for namespace in self._audiences}
            self._blocked_on = frozenset(self._audiences)
            try:
                answer = await client.xread(streams, block=_BLOCK_MS, count=_BATCH)
            finally:
                self._blocked_on = None
            await self._deliver(answer, names)

    async def _deliver(self, answer: object, names: dict[bytes, str]) -> None:
        batches: dict[str, list[EventEntry]] = {}
        for stream, entry, fields in entries(answer):
            try:
                batches.setdefault(names[stream], []).append(EventEntry.parse(entry, fields))
            except BadMessage as error:
                log.warning("%s", error)
                audience = self._audiences[names[stream]]
                audience.position = max(audience.position, Position.of(entry))
        for namespace, batch in batches.items():
            audience = self._audiences[namespace]
            near = await self._near(namespace, audience, batch)
            for entry, waiters in zip(batch, near, strict=True):
                audience.offer(entry, waiters)

    async def _near(self, namespace: str, audience: Audience, batch: Sequence[EventEntry]) -> list[set[Waiter] | None]:
        """Find the waiters whose query is close to each entry's chunk; None where that is unknown."""
        near: list[set[Waiter] | None] = [set() for _ in batch]
        asked = [number for number, entry in enumerate(batch) if entry.kind == MEMORY and entry.has_vector]
        if not asked or not audience.with_query:
            return near
        keys = Keys(namespace)

        async def fetch(client: Client) -> list[bytes | None]:
            pipe = client.pipeline(transaction=False)
            for number in asked:
                pipe.hget(keys.hash_of_chunk(batch[number].subject, batch[number].piece), model.field)
            return await pipe.execute()

        try:
            model = await self._models.current(namespace)
            vectors = await self._backend.read(fetch)
        except MemoryServiceError:
            return [None for _ in batch]
        for number, vector in zip(asked, vectors, strict=True):
            # Redis has no vector of a sensitive memory or of another model: each waiter compares itself.
            near[number] = audience.near(from_stored(vector, model.dimension), model) if vector else None
        return near
