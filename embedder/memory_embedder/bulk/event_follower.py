"""Fills a mirror from Redis and keeps it as the namespace is, by the namespace's own event stream.

Events only say what to read again: what is mirrored is always the state that a record has now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from memory_core.connection import Client
from memory_core.keys import Keys
from memory_core.names import SEPARATOR
from memory_core.streams import Fields, entries
from memory_embedder.bulk.mirror import Loaded, Mirror

_log = logging.getLogger(__name__)
_SLICE = 256
_EVENTS_AT_ONCE = 1000
_START = b"0-0"
_LABELS = ("owner", "writer", "type", "priority", "context", "source")
_MANY_LABELS = ("scope", "tags")
_HEAD = (*_LABELS, *_MANY_LABELS, "expires_at", "occurred_at", "updated_at", "pieces", "hash")
_NAMES: tuple[str, ...] = (*_HEAD, "vector")
_FIELDS = [name.encode() for name in _HEAD]
"""As bytes: redis-py would encode them again for every record."""

_Head = dict[str, Any]
Dirty = dict[str, set[int] | None]
"""Memories to read again: some pieces, or None for all of them."""


class Lost(Exception):
    """The stream no longer holds everything since the position, or another model answered meanwhile, of whose vectors
    alone it tells: the mirror must be filled anew.
    """


class Follower:
    """Reads one namespace; `position` is the event up to which its mirror has followed."""

    def __init__(self, client: Client, keys: Keys, vector_field: str) -> None:
        self._client = client
        self._keys = keys
        self._field = vector_field.encode()
        self.position = _START
        self._switches: bytes | None = None

    async def fill(self, mirror: Mirror, progress: Callable[[], None]) -> None:
        """Read every memory, slice by slice; `progress` is called after each and may raise to stop it."""
        self._switches = await self._client.hget(self._keys.meta, "switches")
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
        """Bring a mirror up to the end of the stream.

        Raises:
            Lost: entries were trimmed before they were read, or the stream began anew.
        """
        more = True
        while more:
            found = await self._news()
            dirty = _dirty(fields for _, fields in found)
            ids = list(dirty)
            for start in range(0, len(ids), _SLICE):
                mirror.put(await self._load({name: dirty[name] for name in ids[start : start + _SLICE]}))
            if found:
                self.position = found[-1][0]
            more = len(found) == _EVENTS_AT_ONCE

    async def _news(self) -> list[tuple[bytes, Fields]]:
        stream = self._keys.events
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.xread({stream: self.position}, count=_EVENTS_AT_ONCE)
            pipe.xread({stream: _START}, count=1)
            pipe.xread({stream: "+"})
            pipe.hget(self._keys.meta, "switches")
            *answers, switches = await pipe.execute()
        if switches != self._switches:
            raise Lost
        news, first, last = (list(entries(answer)) for answer in answers)
        # The oldest entry is looked at after the news were read, so what was trimmed before that shows.
        known = _order(self.position)
        if (first and _order(first[0][1]) > known) or (not last and known > (0, 0)):
            raise Lost
        if last and _order(last[0][1]) < known:
            raise Lost
        return [(entry, fields) for _, entry, fields in news]

    async def _end(self) -> bytes:
        last = list(entries(await self._client.xread({self._keys.events: "+"})))
        return last[0][1] if last else _START

    async def _load(self, dirty: Dirty) -> list[Loaded]:
        """Read memories as they are now, with their further pieces where these are of the same content."""
        async with self._client.pipeline(transaction=False) as pipe:
            for memory_id in dirty:
                pipe.hmget(self._keys.memory(memory_id), [*_FIELDS, self._field])
            rows = await pipe.execute()
        heads: dict[str, _Head] = {
            memory_id: dict(zip(_NAMES, row, strict=True)) for memory_id, row in zip(dirty, rows, strict=True)
        }
        further = await self._load_further(heads, dirty)
        return [
            _loaded(memory_id, heads[memory_id], pieces, further.get(memory_id, []))
            for memory_id, pieces in dirty.items()
        ]

    async def _load_further(self, heads: dict[str, _Head], dirty: Dirty) -> dict[str, list[tuple[int, bytes]]]:
        wanted = [
            (memory_id, piece) for memory_id, pieces in dirty.items() for piece in _further(heads[memory_id], pieces)
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


def _dirty(found: Iterable[Fields]) -> Dirty:
    dirty: Dirty = {}
    for fields in found:
        if fields.get(b"kind") != b"memory":
            continue
        memory_id = fields[b"id"].decode()
        if fields.get(b"op") == b"embedded" and dirty.get(memory_id, set()) is not None:
            pieces = dirty.setdefault(memory_id, set())
            assert pieces is not None
            pieces.add(int(fields.get(b"piece", b"0")))
        else:
            dirty[memory_id] = None
    return dirty


def _further(head: _Head, pieces: set[int] | None) -> Sequence[int]:
    count = head["pieces"] or b"1"
    everything = range(1, int(count) if count.isdigit() else 1)
    return everything if pieces is None else [piece for piece in sorted(pieces) if piece in everything]


def _loaded(memory_id: str, head: _Head, pieces: set[int] | None, further: list[tuple[int, bytes]]) -> Loaded:
    """Make what a mirror takes in; a record that is gone, or of a form not known here, is no row."""
    try:
        return Loaded(memory_id) if head["owner"] is None else _parse(memory_id, head, pieces, further)
    except ValueError as error:
        _log.warning("memory %s cannot be read and is not mirrored: %s", memory_id, type(error).__name__)
        return Loaded(memory_id)


def _parse(memory_id: str, head: _Head, pieces: set[int] | None, further: list[tuple[int, bytes]]) -> Loaded:
    vector = head["vector"]
    own = [(0, vector)] if vector is not None and (pieces is None or 0 in pieces) else []
    return Loaded(
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
