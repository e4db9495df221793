"""Keeps mirrors within a budget of memory: filled when first asked for, followed while warm, the coldest dropped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from memory_core import keys, redis_time
from memory_core.bulk import IndexType, Selection
from memory_core.connection import Client
from memory_embedder.bulk.array_module import Resident
from memory_embedder.bulk.engine import BulkEngine, Snapshot
from memory_embedder.bulk.event_follower import Follower, Lost
from memory_embedder.bulk.faiss_index import Approximate, build
from memory_embedder.bulk.mirror import Mirror

_log = logging.getLogger(__name__)
_LEAST_REBUILD = 0.05
"""Share of the rows whose change makes a new index worth while, where `rebuild_threshold` is less."""


class TooLarge(Exception):
    """A namespace that does not fit into the budget by itself."""


@dataclass(slots=True)
class Kept:
    """One namespace: its mirror, what follows it, and the index over it. `lock` is held while rows come and go."""

    follower: Follower
    mirror: Mirror
    resident: Resident
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    index: Approximate | None = None
    building: asyncio.Task[None] | None = None
    filling: asyncio.Task[None] | None = None
    filled: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all of it, on the host and on the GPU."""
        return self.mirror.nbytes + self.resident.nbytes + (self.index.nbytes if self.index else 0)


class Shelf:
    """The mirrors of one sidecar, least recently used first."""

    def __init__(self, client: Client, engine: BulkEngine, field_name: str, dimension: int, budget: int) -> None:
        self._client = client
        self._engine = engine
        self._field = field_name
        self._dimension = dimension
        self.budget = budget
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    @property
    def kept(self) -> list[Kept]:
        """What is there, being filled or filled."""
        return list(self._kept.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all mirrors."""
        return sum(one.nbytes for one in self._kept.values())

    async def snapshot(self, namespace: str, selection: Selection) -> tuple[Kept, Snapshot]:
        """Give a namespace's rows as they are now, filling its mirror if it has none.

        Filling goes on when the caller is cancelled: the next one will find it further.

        Raises:
            TooLarge: the namespace does not fit into the budget.
        """
        kept = self._take(namespace)
        while True:
            if not kept.filled:
                await self._filled(namespace, kept)
            async with kept.lock:
                try:
                    await kept.follower.follow(kept.mirror)
                except Lost:
                    kept.filled = False
                    continue
                self._compact(kept)
                self._make_room(namespace, kept)
                mirror = kept.mirror
                chosen = await asyncio.to_thread(mirror.select, selection, redis_time.now())
                return kept, Snapshot(mirror.vectors[: len(chosen)], mirror.ids, mirror.pieces, chosen, kept.resident)

    async def keep_up(self) -> None:
        """Follow all that is warm, so that no stream is trimmed before it was read."""
        for namespace, kept in list(self._kept.items()):
            if not kept.filled or kept.lock.locked():
                continue
            async with kept.lock:
                try:
                    await kept.follower.follow(kept.mirror)
                except Lost:
                    kept.filled = False
                    continue
                kept.mirror.expire(redis_time.now())
                self._compact(kept)
            try:
                self._make_room(namespace, kept)
            except TooLarge:
                self._drop(namespace)

    def index_for(self, kept: Kept, wanted: IndexType, threshold: int) -> Approximate | None:
        """Give the index of a kind if there is one; have one built if that is due."""
        kind = self._engine.faiss.usable(wanted)
        mirror, index = kept.mirror, kept.index
        if kind == "Flat" or mirror.living < threshold:
            return None
        due = max(threshold, int(_LEAST_REBUILD * mirror.count))
        if (index is None or index.kind != kind or mirror.changes - index.changes >= due) and kept.building is None:
            kept.building = asyncio.create_task(self._build(kept, kind))
        return index if index and index.kind == kind else None

    async def close(self) -> None:
        """Stop filling and building."""
        tasks = [task for one in self.kept for task in (one.filling, one.building) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._kept.clear()

    def _take(self, namespace: str) -> Kept:
        kept = self._kept.get(namespace)
        if kept is None:
            follower = Follower(self._client, keys.Keys(namespace), self._field)
            kept = self._kept[namespace] = Kept(follower, Mirror(self._dimension), Resident(self._engine.arrays))
        self._kept.move_to_end(namespace)
        return kept

    async def _filled(self, namespace: str, kept: Kept) -> None:
        if kept.filling is None or kept.filling.done():
            kept.filling = asyncio.create_task(self._fill(namespace, kept))
            kept.filling.add_done_callback(_hear)
        try:
            await asyncio.shield(kept.filling)
        except TooLarge:
            self._drop(namespace)
            raise

    async def _fill(self, namespace: str, kept: Kept) -> None:
        started = time.perf_counter()
        async with kept.lock:
            kept.mirror, kept.index, kept.resident = (
                Mirror(self._dimension),
                None,
                Resident(self._engine.arrays),
            )
            try:
                await kept.follower.fill(kept.mirror, lambda: self._make_room(namespace, kept))
            except BaseException:
                kept.mirror = Mirror(self._dimension)
                raise
            kept.filled = True
        seconds = time.perf_counter() - started
        _log.info("mirrored %d vectors of %s in %.2f s", kept.mirror.living, namespace, seconds)

    async def _build(self, kept: Kept, kind: IndexType) -> None:
        mirror = kept.mirror
        try:
            index = await asyncio.to_thread(build, self._engine.faiss, kind, mirror.vectors, mirror.changes)
            if kept.mirror is mirror:
                kept.index = index
        except Exception as error:
            # Searches stay exact; the next one tries again.
            _log.warning("no %s index could be built: %s", kind, error)
        finally:
            kept.building = None

    def _compact(self, kept: Kept) -> None:
        if kept.mirror.needs_compaction and kept.building is None:
            kept.mirror, kept.index, kept.resident = kept.mirror.compacted(), None, Resident(self._engine.arrays)

    def _make_room(self, namespace: str, kept: Kept) -> None:
        """Drop the least recently used until the budget holds; those in use stay.

        Raises:
            TooLarge: they alone exceed the budget.
        """
        for other in list(self._kept):
            if self.nbytes <= self.budget:
                return
            if other != namespace and not self._kept[other].lock.locked():
                _log.info("the mirror of %s makes room", other)
                self._drop(other)
        if self.nbytes > self.budget:
            raise TooLarge(f"its {kept.mirror.living} vectors and more do not fit into bulk.memory_bytes")

    def _drop(self, namespace: str) -> None:
        kept = self._kept.pop(namespace, None)
        if kept:
            for task in (kept.filling, kept.building):
                if task:
                    task.cancel()


def _hear(task: asyncio.Task[None]) -> None:
    """Whoever still waits is told of the failure; if nobody does it is no matter."""
    if not task.cancelled():
        task.exception()
