"""Keeps mirrors within a memory budget. Fills a mirror on its first use and evicts the least recently used."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from memory_core.records import keys, redis_time
from memory_core.redis_client import Client
from memory_core.store.bulk_messages import IndexType, Selection
from memory_embedder.bulk.array_module import DeviceRows
from memory_embedder.bulk.engine import BulkEngine, Snapshot
from memory_embedder.bulk.event_follower import EventFollower, EventsLost
from memory_embedder.bulk.faiss_index import FaissIndex, build
from memory_embedder.bulk.mirror import Mirror

_log = logging.getLogger(__name__)
_MIN_REBUILD_SHARE = 0.05
"""Share of changed rows that makes a rebuild worthwhile, if `rebuild_threshold` is lower."""


class MirrorTooLarge(Exception):
    """A namespace alone exceeds the memory budget."""


@dataclass(slots=True)
class CachedMirror:
    """The mirror of one namespace, its follower and its index. `lock` is held while rows change."""

    follower: EventFollower
    mirror: Mirror
    device_rows: DeviceRows
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    index: FaissIndex | None = None
    building: asyncio.Task[None] | None = None
    filling: asyncio.Task[None] | None = None
    filled: bool = False

    @property
    def nbytes(self) -> int:
        """Size in bytes, on the host and on the GPU."""
        return self.mirror.nbytes + self.device_rows.nbytes + (self.index.nbytes if self.index else 0)


class MirrorCache:
    """The mirrors of a sidecar, least recently used first."""

    def __init__(self, client: Client, engine: BulkEngine, model: str, dimension: int, budget: int) -> None:
        self._client = client
        self._engine = engine
        self._model = model
        self._dimension = dimension
        self.budget = budget
        self._cached: OrderedDict[str, CachedMirror] = OrderedDict()

    @property
    def mirrors(self) -> list[CachedMirror]:
        """All mirrors, also those that are being filled."""
        return list(self._cached.values())

    @property
    def nbytes(self) -> int:
        """Size of all mirrors in bytes."""
        return sum(one.nbytes for one in self._cached.values())

    async def snapshot(self, namespace: str, selection: Selection) -> tuple[CachedMirror, Snapshot]:
        """The current rows of a namespace. Fills its mirror if there is none.

        Filling continues when the caller is cancelled, so that a later request can use the mirror.

        Raises:
            MirrorTooLarge: the namespace does not fit into the budget.
        """
        cached = self._get_or_create(namespace)
        while True:
            if not cached.filled:
                await self._wait_until_filled(namespace, cached)
            async with cached.lock:
                try:
                    await cached.follower.follow(cached.mirror)
                except EventsLost:
                    cached.filled = False
                    continue
                self._compact(cached)
                self._make_room(namespace, cached)
                mirror = cached.mirror
                chosen = await asyncio.to_thread(mirror.select, selection, redis_time.now())
                return cached, Snapshot(
                    mirror.vectors[: len(chosen)], mirror.ids, mirror.pieces, chosen, cached.device_rows
                )

    async def keep_up(self) -> None:
        """Update all filled mirrors, so that no event is trimmed before it is read."""
        for namespace, cached in list(self._cached.items()):
            if not cached.filled or cached.lock.locked():
                continue
            async with cached.lock:
                try:
                    await cached.follower.follow(cached.mirror)
                except EventsLost:
                    cached.filled = False
                    continue
                cached.mirror.expire(redis_time.now())
                self._compact(cached)
            try:
                self._make_room(namespace, cached)
            except MirrorTooLarge:
                self._evict(namespace)

    def index_for(self, cached: CachedMirror, requested: IndexType, threshold: int) -> FaissIndex | None:
        """The index of a kind, if there is one. Starts building one if that is due."""
        kind = self._engine.faiss.usable(requested)
        mirror, index = cached.mirror, cached.index
        if kind == "Flat" or mirror.living < threshold:
            return None
        due = max(threshold, int(_MIN_REBUILD_SHARE * mirror.count))
        if (index is None or index.kind != kind or mirror.changes - index.changes >= due) and cached.building is None:
            cached.building = asyncio.create_task(self._build(cached, kind))
        return index if index and index.kind == kind else None

    async def close(self) -> None:
        """Stop filling and building."""
        tasks = [task for one in self.mirrors for task in (one.filling, one.building) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._cached.clear()

    def _get_or_create(self, namespace: str) -> CachedMirror:
        cached = self._cached.get(namespace)
        if cached is None:
            follower = EventFollower(self._client, keys.Keys(namespace), self._model)
            cached = self._cached[namespace] = CachedMirror(
                follower, Mirror(self._dimension), DeviceRows(self._engine.arrays)
            )
        self._cached.move_to_end(namespace)
        return cached

    async def _wait_until_filled(self, namespace: str, cached: CachedMirror) -> None:
        if cached.filling is None or cached.filling.done():
            cached.filling = asyncio.create_task(self._fill(namespace, cached))
            cached.filling.add_done_callback(_consume_error)
        try:
            await asyncio.shield(cached.filling)
        except MirrorTooLarge:
            self._evict(namespace)
            raise

    async def _fill(self, namespace: str, cached: CachedMirror) -> None:
        started = time.perf_counter()
        async with cached.lock:
            cached.mirror, cached.index, cached.device_rows = (
                Mirror(self._dimension),
                None,
                DeviceRows(self._engine.arrays),
            )
            try:
                await cached.follower.fill(cached.mirror, lambda: self._make_room(namespace, cached))
            except BaseException:
                cached.mirror = Mirror(self._dimension)
                raise
            cached.filled = True
        seconds = time.perf_counter() - started
        _log.info("mirrored %d vectors of %s in %.2f s", cached.mirror.living, namespace, seconds)

    async def _build(self, cached: CachedMirror, kind: IndexType) -> None:
        mirror = cached.mirror
        try:
            index = await asyncio.to_thread(build, self._engine.faiss, kind, mirror.vectors, mirror.changes)
            if cached.mirror is mirror:
                cached.index = index
        except Exception as error:  # searches stay exact, and the next one tries again
            _log.warning("cannot build a %s index: %s", kind, error)
        finally:
            cached.building = None

    def _compact(self, cached: CachedMirror) -> None:
        if cached.mirror.needs_compaction and cached.building is None:
            cached.mirror, cached.index, cached.device_rows = (
                cached.mirror.compacted(),
                None,
                DeviceRows(self._engine.arrays),
            )

    def _make_room(self, namespace: str, cached: CachedMirror) -> None:
        """Evict least recently used mirrors until the budget is met. Mirrors in use stay.

        Raises:
            MirrorTooLarge: the mirrors in use exceed the budget.
        """
        for other in list(self._cached):
            if self.nbytes <= self.budget:
                return
            if other != namespace and not self._cached[other].lock.locked():
                _log.info("evicting the mirror of %s", other)
                self._evict(other)
        if self.nbytes > self.budget:
            raise MirrorTooLarge(f"more than {cached.mirror.living} vectors do not fit into bulk.memory_bytes")

    def _evict(self, namespace: str) -> None:
        cached = self._cached.pop(namespace, None)
        if cached:
            for task in (cached.filling, cached.building):
                if task:
                    task.cancel()


def _consume_error(task: asyncio.Task[None]) -> None:
    """Requests that wait get the error. Without one, asyncio must not report it as never retrieved."""
    if not task.cancelled():
        task.exception()
