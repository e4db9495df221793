"""Tracks which namespaces have an index on the connected Redis, and how much of each it covers.

An answer is complete only if the same index was complete before and after the search.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeVar

from redis import exceptions as redis_errors

from memory_core.cancellation import cancel
from memory_core.errors import MemoryServiceError, StoreUnavailable
from memory_core.records.keys import NAMESPACES, Keys
from memory_core.records.names import only_names
from memory_core.redis_client import Client
from memory_core.store import index
from memory_core.store.connection import store_errors
from memory_server.engine.index_definition import DriftWarnings
from memory_server.engine.known_models import KnownModels
from memory_server.engine.redis_backend import Backend

log = logging.getLogger(__name__)
T = TypeVar("T")
_FORGET_SECONDS = 600.0
_WATCH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A namespace's index, identified by `made`, on one run of Redis, with its progress (0 to 1) and its pieces."""

    keys: Keys
    run_id: str
    made: int
    progress: float = 0.0
    documents: int = 0


class Namespaces:
    """The namespaces that this process used recently."""

    def __init__(self, backend: Backend, models: KnownModels) -> None:
        self._backend, self._models = backend, models
        backend.on_moved = self.doubt
        self._known: dict[str, Prepared] = {}
        self._used: dict[str, float] = {}
        self._made = count()
        self._preparing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._drift_warnings = DriftWarnings(backend.settings.vector_store)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Namespaces]:
        watching = asyncio.create_task(self._watch())
        try:
            yield self
        finally:
            await cancel([watching])

    async def names(self) -> list[str]:
        return only_names(await self._backend.read(lambda client: client.smembers(NAMESPACES)))

    async def knows(self, name: str) -> bool:
        """Whether anything was ever stored in a namespace. Reading does not create one."""
        if name in self._known:
            return True
        return bool(await self._backend.read(lambda client: client.sismember(NAMESPACES, name)))

    def documents(self, name: str) -> int:
        """Number of pieces in a namespace's index, as last seen."""
        known = self._known.get(name)
        return known.documents if known else 0

    async def get(self, name: str, *, renew: bool = False) -> Prepared:
        """Ensure that a namespace has its index; `renew`: it was just found missing. Raises StoreUnavailable."""
        self._used[name] = time.monotonic()
        known = self._known.get(name)
        if known and not renew and known.progress >= 1 and not self._backend.is_suspect:
            return known
        await self._backend.look_again()
        async with self._preparing[name]:
            known = self._known.get(name)
            if renew or known is None or known.run_id != self._backend.run_id:
                known = await self._make(name)
            return known if known.progress >= 1 else await self._look(known)

    async def search(self, namespace: str, command: Callable[[Client], Awaitable[T]]) -> T:
        """Run commands on an index; if it is missing, create it and run them again. Raises StoreUnavailable."""
        for attempt in range(2):
            try:
                return await self._backend.read(command)
            except redis_errors.ResponseError as error:
                if not index.is_missing_index(error):
                    raise index.search_error(error) from error
                await self.get(namespace, renew=True)
                if attempt:
                    raise StoreUnavailable("the index was replaced meanwhile", retry_after=0.1) from error
        raise AssertionError("unreachable")

    async def covered(self, before: Prepared) -> float:
        """Return the minimum progress of an index from `before` until now. Raises StoreUnavailable."""
        now = await self.get(before.keys.namespace)
        return min(before.progress, now.progress) if now.made == before.made else 0.0

    def doubt(self) -> None:
        """Namespaces may have moved: no index counts as complete until it is checked."""
        for name, known in self._known.items():
            self._known[name] = replace(known, run_id="", made=next(self._made), progress=0.0)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            await self.look_after()

    async def look_after(self) -> None:
        """Create missing indexes again, and forget unused namespaces."""
        for name, known in list(self._known.items()):
            if self._used[name] < time.monotonic() - _FORGET_SECONDS:
                del self._known[name], self._used[name]
                self._preparing.pop(name, None)
                continue
            try:
                if not (await self._look(known)).run_id:
                    await self.get(name, renew=True)
                await self._drift_warnings.once(await self._backend.client(), known.keys)
            except MemoryServiceError as error:
                log.warning("namespace %s: %s", name, error.message)
            except Exception:
                log.exception("namespace %s could not be checked", name)

    async def _make(self, name: str) -> Prepared:
        run_id, made = self._backend.run_id, next(self._made)
        if name in self._known:  # before the new index exists, so that no search takes it for the old one
            self._known[name] = replace(self._known[name], made=made, progress=0.0)
        client = await self._backend.client()
        async with store_errors():
            models = await index.ensure_namespace(client, name, self._backend.settings.vector_store)
        self._models.put(name, models)
        self._known[name] = Prepared(Keys(name), run_id, made)
        return self._known[name]

    async def _look(self, known: Prepared) -> Prepared:
        """Ask how much an index covers; a missing one gets an empty `run_id`."""
        covered = await self._backend.read(lambda client: index.coverage(client, known.keys.index_alias))
        if covered is None:
            found = replace(known, run_id="", progress=0.0, documents=0)
        else:
            found = replace(known, progress=covered.progress, documents=covered.documents)
        latest = self._known.get(known.keys.namespace)
        if latest and latest.made == known.made:
            self._known[known.keys.namespace] = found
        return found
