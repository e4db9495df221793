"""Reads the event streams of the namespaces that have listeners, in one blocking read.

Without listeners it sleeps. A listener in another namespace interrupts the blocked read; there is no polling.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress

from redis.exceptions import RedisError

from memory_core.cancellation import cancel
from memory_core.errors import MemoryServiceError
from memory_core.records.keys import Keys
from memory_core.records.vectors import from_bytes
from memory_core.redis_client import Client
from memory_core.store.connection import connect
from memory_core.store.streams import BadMessage, entries
from memory_server.engine.backend import Backend
from memory_server.engine.known_models import KnownModels
from memory_server.events.audience import Audience
from memory_server.events.entries import MEMORY, Entry, Position
from memory_server.events.listeners import Follower, Waiter

log = logging.getLogger(__name__)
_BLOCK_MS = 5000
_AT_ONCE = 256
_RECONNECT_SECONDS = 0.2
_INTERRUPT_SECONDS = 0.002


class Reader:
    """Offers every event to the listeners of its namespace, in order and once."""

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
        """End all waits now, since the server is about to stop."""
        self._closed = True
        for audience in self._audiences.values():
            audience.close()

    def count(self, namespace: str) -> int:
        """Count the listeners of a namespace."""
        return len(self._audiences.get(namespace, ()))

    @contextmanager
    def listening(self, namespace: str, listener: Waiter | Follower, at: Position) -> Generator[Audience]:
        """Offer a listener what comes after `at`, the end of the stream as it was read a moment ago."""
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
            pass  # the reader has lost its connection too, and starts again with all audiences
        finally:
            self._interrupting = None

    async def run(self) -> None:
        """Read until closed; the connection is made for the first listener."""
        try:
            await self._read_for_ever()
        finally:
            if self._interrupting:
                await cancel([self._interrupting])

    async def _read_for_ever(self) -> None:
        while not self._closed:
            await self._occupied.wait()
            try:
                await self._backend.client()
                async with connect(self._backend.url, timeout=_BLOCK_MS / 1000 + 5) as client:
                    await self._read(client)
            except (RedisError, OSError, MemoryServiceError) as error:
                log.warning("event streams: %s", type(error).__name__)
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
            self._leave_empty_audiences()
            if not self._audiences:
                self._occupied.clear()
                await self._occupied.wait()
                continue
            streams = {Keys(namespace).events: audience.position.id for namespace, audience in self._audiences.items()}
            names = {Keys(namespace).events.encode(): namespace for namespace in self._audiences}
            self._blocked_on = frozenset(self._audiences)
            try:
                answer = await client.xread(streams, block=_BLOCK_MS, count=_AT_ONCE)
            finally:
                self._blocked_on = None
            await self._hand_out(answer, names)

    def _leave_empty_audiences(self) -> None:
        for namespace in [namespace for namespace, audience in self._audiences.items() if not len(audience)]:
            del self._audiences[namespace]

    async def _hand_out(self, answer: object, names: dict[bytes, str]) -> None:
        batches: dict[str, list[Entry]] = {}
        for stream, entry, fields in entries(answer):
            try:
                batches.setdefault(names[stream], []).append(Entry.parse(entry, fields))
            except BadMessage as error:
                log.warning("%s", error)
                audience = self._audiences[names[stream]]
                audience.position = max(audience.position, Position.of(entry))
        for namespace, batch in batches.items():
            audience = self._audiences[namespace]
            near = await self._near(namespace, audience, batch)
            for entry, waiters in zip(batch, near, strict=True):
                audience.offer(entry, waiters)

    async def _near(self, namespace: str, audience: Audience, batch: Sequence[Entry]) -> list[set[Waiter] | None]:
        """Find for each entry the waiters whose query is close to its piece; None where that is unknown."""
        near: list[set[Waiter] | None] = [set() for _ in batch]
        asked = [number for number, entry in enumerate(batch) if entry.kind == MEMORY and entry.has_vector]
        if not asked or not audience.has_queries:
            return near
        keys = Keys(namespace)

        async def fetch(client: Client) -> list[bytes | None]:
            pipe = client.pipeline(transaction=False)
            for number in asked:
                piece = keys.hash_of_chunk(batch[number].subject, batch[number].piece)
                pipe.hget(piece, model.field)
            return await pipe.execute()

        try:
            model = await self._models.current(namespace)
            vectors = await self._backend.read(fetch)
        except MemoryServiceError:
            return [None for _ in batch]
        for number, vector in zip(asked, vectors, strict=True):
            # Redis has no vector of a sensitive memory or of another model: each waiter compares itself.
            near[number] = audience.near(from_bytes(vector, model.dimension)[0], model) if vector else None
        return near
