"""Reads event streams: it blocks on all streams of some namespaces that somebody listens to.

With nobody listening it sleeps. A listener in another namespace interrupts the blocked read instead of waiting for it
to end; nothing is polled.
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
from memory_core.store.connection import Client, connect
from memory_core.store.streams import BadMessage, entries
from memory_server.engine.backend import Backend
from memory_server.events.audience import Room
from memory_server.events.entries import MEMORY, Entry, Position
from memory_server.events.listeners import Follower, Waiter

log = logging.getLogger(__name__)
_BLOCK_MS = 5000
_AT_ONCE = 256
_RECONNECT_SECONDS = 0.2
_INTERRUPT_SECONDS = 0.002


class Reader:
    """Offers every event to the listeners of its namespace, in order and once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._rooms: dict[str, Room] = {}
        self._occupied = asyncio.Event()
        self._blocked_on: frozenset[str] | None = None
        self._client_id = 0
        self._interrupting: asyncio.Task[None] | None = None
        self._closed = False
        self._missed = False

    def close(self) -> None:
        """End all waits now, since the server is about to stop."""
        self._closed = True
        for room in self._rooms.values():
            room.close()

    def count(self, namespace: str) -> int:
        """How many listen in a namespace."""
        return len(self._rooms.get(namespace, ()))

    @contextmanager
    def listening(self, namespace: str, listener: Waiter | Follower, at: Position) -> Generator[Room]:
        """Offer a listener what comes after `at`, the end of the stream as it was read a moment ago."""
        room = self._rooms.setdefault(namespace, Room(at))
        room.add(listener)
        if self._closed:
            listener.close()
        self._occupied.set()
        if self._blocked_on is not None and namespace not in self._blocked_on and not self._interrupting:
            self._interrupting = asyncio.create_task(self._interrupt())
        try:
            yield room
        finally:
            room.remove(listener)

    async def _interrupt(self) -> None:
        """Unblock the read until it covers all rooms: it may have been about to block when told for the first time."""
        try:
            client = await self._backend.client()
            while self._blocked_on is not None and not self._blocked_on >= self._rooms.keys():
                with suppress(RedisError, OSError):
                    await client.client_unblock(self._client_id)
                await asyncio.sleep(_INTERRUPT_SECONDS)
        except MemoryServiceError:
            pass  # the reader has lost its connection too, and begins anew with all rooms
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
        for room in self._rooms.values() if self._missed else ():
            room.lose()
        self._missed = False
        while not self._closed:
            self._leave_empty_rooms()
            if not self._rooms:
                self._occupied.clear()
                await self._occupied.wait()
                continue
            streams = {Keys(namespace).events: room.position.id for namespace, room in self._rooms.items()}
            names = {Keys(namespace).events.encode(): namespace for namespace in self._rooms}
            self._blocked_on = frozenset(self._rooms)
            try:
                answer = await client.xread(streams, block=_BLOCK_MS, count=_AT_ONCE)
            finally:
                self._blocked_on = None
            await self._hand_out(answer, names)

    def _leave_empty_rooms(self) -> None:
        for namespace in [namespace for namespace, room in self._rooms.items() if not len(room)]:
            del self._rooms[namespace]

    async def _hand_out(self, answer: object, names: dict[bytes, str]) -> None:
        batches: dict[str, list[Entry]] = {}
        for stream, entry, fields in entries(answer):
            try:
                batches.setdefault(names[stream], []).append(Entry.parse(entry, fields))
            except BadMessage as error:
                log.warning("%s", error)
                room = self._rooms[names[stream]]
                room.position = max(room.position, Position.of(entry))
        for namespace, batch in batches.items():
            room = self._rooms[namespace]
            near = await self._near(namespace, room, batch)
            for entry, waiters in zip(batch, near, strict=True):
                room.offer(entry, waiters)

    async def _near(self, namespace: str, room: Room, batch: Sequence[Entry]) -> list[set[Waiter] | None]:
        """Tell for each entry who has a query close to its piece; None where that is not known."""
        told: list[set[Waiter] | None] = [set() for _ in batch]
        asked = [number for number, entry in enumerate(batch) if entry.kind == MEMORY and entry.has_vector]
        if not asked or not room.has_queries:
            return told
        keys = Keys(namespace)

        async def fetch(client: Client) -> list[bytes | None]:
            pipe = client.pipeline(transaction=False)
            for number in asked:
                piece = keys.piece(batch[number].subject, batch[number].piece)
                pipe.hget(piece, model.field)
            return await pipe.execute()

        try:
            model = await self._backend.model(namespace)
            vectors = await self._backend.read(fetch)
        except MemoryServiceError:
            return [None for _ in batch]
        for number, vector in zip(asked, vectors, strict=True):
            # Of a sensitive memory Redis shows none, nor of what another model embeds by now: each looks for himself.
            told[number] = room.near(from_bytes(vector, model.dimension)[0], model) if vector else None
        return told
