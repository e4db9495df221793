"""Fills a mirror from Redis and keeps it current with the namespace's event stream.

An event only says which memory to read again. The mirror always holds the current state of a record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from memory_core.records.keys import Keys, vector_field
from memory_core.records.names import SEPARATOR
from memory_core.redis_client import Client
from memory_core.store.streams import Fields, entries
from memory_embedder.bulk.mirror import LoadedMemory, Mirror

_log = logging.getLogger(__name__)
_SLICE = 256
_EVENTS_AT_ONCE = 1000
_START = b"0-0"
_LABELS = ("owner", "writer", "type", "priority", "context", "source")
_MANY_LABELS = ("scope", "tags")
_HEAD = (*_LABELS, *_MANY_LABELS, "expires_at", "occurred_at", "updated_at", "pieces", "hash")
_NAMES: tuple[str, ...] = (*_HEAD, "vector")
_FIELDS = [name.encode() for name in _HEAD]
"""As bytes, because redis-py would encode text again for each record."""

_Head = dict[str, Any]
StaleMemories = dict[str, set[int] | None]
"""Memories to read again: the numbers of the stale chunks, or None for all chunks."""


class EventsLost(Exception):
    """The mirror must be filled again: events since the position were trimmed, or the namespace changed its model."""


class EventFollower:
    """Reads one namespace's vectors of a model. `position` is the last event that its mirror includes."""

    def __init__(self, client: Client, keys: Keys, model: str) -> None:
        self._client = client
        self._keys = keys
        self._model = model
        self._field = b""
        self.position = _START
        self._switches: bytes | None = None

    async def fill(self, mirror: Mirror, progress: Callable[[], None]) -> None:
        """Read all memories in slices. `progress` is called after each slice and may raise to stop."""
        self._switches, field = await self._client.hmget(self._keys.meta, ["switches", "field"])
        is_float32 = field == vector_field(self._model, half=False).encode()
        self._field = vector_field(self._model, half=not is_float32).encode()
        self.position = await self._end()
        cursor, pattern = 0, self._keys.memory_prefix + "*"
        waiting: list[str] = []
        while True:
            cursor, found = await self._client.scan(cursor, match=pattern, count=_SLICE * 4)
            waiting += [key.decode()[len(self._keys.memory_prefix) :] for key in found]
            while len(waiting) >= _SLICE or (waiting and not cursor):
                slice_, waiting = waiting[:_SLICE], waiting[_SLICE:]
                mirror.put(await self._load(dict.fromkeys(slice_)))
                progress()
                await asyncio.sleep(0)
            if not cursor:
                return

    async def follow(self, mirror: Mirror) -> None:
        """Update a mirror to the end of the stream.

        Raises:
            EventsLost: entries were trimmed before they were read, or the stream was recreated.
        """
        more = True
        while more:
            found = await self._new_events()
            stale = _stale_memories(fields for _, fields in found)
            ids = list(stale)
            for start in range(0, len(ids), _SLICE):
                mirror.put(await self._load({name: stale[name] for name in ids[start : start + _SLICE]}))
            if found:
                self.position = found[-1][0]
            more = len(found) == _EVENTS_AT_ONCE

    async def _new_events(self) -> list[tuple[bytes, Fields]]:
        stream = self._keys.events
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.xread({stream: self.position}, count=_EVENTS_AT_ONCE)
            pipe.xread({stream: _START}, count=1)
            pipe.xread({stream: "+"})
            pipe.hget(self._keys.meta, "switches")
            *answers, switches = await pipe.execute()
        if switches != self._switches:
            raise EventsLost
        news, first, last = (list(entries(answer)) for answer in answers)
        # The oldest entry is read after the new ones, so that an earlier trim is noticed.
        known = _order(self.position)
        if (first and _order(first[0][1]) > known) or (not last and known > (0, 0)):
            raise EventsLost
        if last and _order(last[0][1]) < known:
            raise EventsLost
        if any(fields[b"kind"] == b"lost" and _order(fields[b"id"]) > known for _, _, fields in news):
            raise EventsLost
        return [(entry, fields) for _, entry, fields in news]

    async def _end(self) -> bytes:
        last = list(entries(await self._client.xread({self._keys.events: "+"})))
        return last[0][1] if last else _START

    async def _load(self, stale: StaleMemories) -> list[LoadedMemory]:
        """Read the current memories, with those further chunks that belong to the same content."""
        async with self._client.pipeline(transaction=False) as pipe:
            for memory_id in stale:
                pipe.hmget(self._keys.memory(memory_id), [*_FIELDS, self._field])
            rows = await pipe.execute()
        heads: dict[str, _Head] = {
            memory_id: dict(zip(_NAMES, row, strict=True)) for memory_id, row in zip(stale, rows, strict=True)
        }
        further = await self._load_further(heads, stale)
        return [
            _loaded(memory_id, heads[memory_id], pieces, further.get(memory_id, []))
            for memory_id, pieces in stale.items()
        ]

    async def _load_further(self, heads: dict[str, _Head], stale: StaleMemories) -> dict[str, list[tuple[int, bytes]]]:
        wanted = [
            (memory_id, piece)
            for memory_id, pieces in stale.items()
            for piece in _further_pieces(heads[memory_id], pieces)
        ]
        found: dict[str, list[tuple[int, bytes]]] = {}
        for start in range(0, len(wanted), _SLICE):
            part = wanted[start : start + _SLICE]
            async with self._client.pipeline(transaction=False) as pipe:
                for memory_id, piece in part:
                    pipe.hmget(self._keys.chunk(memory_id, piece), [b"hash", self._field])
                rows = await pipe.execute()
            for (memory_id, piece), (content, vector) in zip(part, rows, strict=True):
                if vector is not None and content == heads[memory_id]["hash"]:
                    found.setdefault(memory_id, []).append((piece, vector))
        return found


def _stale_memories(found: Iterable[Fields]) -> StaleMemories:
    stale: StaleMemories = {}
    for fields in found:
        if fields.get(b"kind") != b"memory":
            continue
        memory_id = fields[b"id"].decode()
        if fields.get(b"op") == b"embedded" and stale.get(memory_id, set()) is not None:
            pieces = stale.setdefault(memory_id, set())
            assert pieces is not None
            pieces.add(int(fields.get(b"piece", b"0")))
        else:
            stale[memory_id] = None
    return stale


def _further_pieces(head: _Head, pieces: set[int] | None) -> Sequence[int]:
    count = head["pieces"] or b"1"
    everything = range(1, int(count) if count.isdigit() else 1)
    return everything if pieces is None else [piece for piece in sorted(pieces) if piece in everything]


def _loaded(memory_id: str, head: _Head, pieces: set[int] | None, further: list[tuple[int, bytes]]) -> LoadedMemory:
    """Build the row of a memory. A record that is deleted, or of an unknown form, has no vectors."""
    try:
        return LoadedMemory(memory_id) if head["owner"] is None else _parse(memory_id, head, pieces, further)
    except ValueError as error:
        _log.warning("memory %s is not mirrored: %s", memory_id, type(error).__name__)
        return LoadedMemory(memory_id)


def _parse(memory_id: str, head: _Head, pieces: set[int] | None, further: list[tuple[int, bytes]]) -> LoadedMemory:
    vector = head["vector"]
    own = [(0, vector)] if vector is not None and (pieces is None or 0 in pieces) else []
    return LoadedMemory(
        memory_id,
        labels=list(_labels(head)),
        expires_at=_number(head["expires_at"], float("inf")),
        occurred_at=_number(head["occurred_at"], float("nan")),
        pieces=[*own, *further],
        whole=pieces is None,
        updated_at=_number(head["updated_at"], float("nan")),
    )


def _labels(head: _Head) -> Iterable[tuple[str, str]]:
    for name in _LABELS:
        if head[name]:
            yield name, head[name].decode()
    for name in _MANY_LABELS:
        if head[name]:
            for value in head[name].decode().split(SEPARATOR):
                yield name, value


def _number(value: bytes | None, otherwise: float) -> float:
    return otherwise if value is None else float(value)


def _order(entry: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)
