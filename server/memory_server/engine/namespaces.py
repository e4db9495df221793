"""Knows which namespaces have their index on the Redis now connected, and how much of each it covers.

An answer is whole only if the index was whole from before its search until after it: by the time that anybody asks, an
index that was dropped meanwhile may have been made anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from memory_core.errors import MemoryServiceError
from memory_core.records.keys import Keys
from memory_core.store import index
from memory_core.store.connection import store_errors
from memory_server.engine.index_definition import LookOver

if TYPE_CHECKING:
    from memory_server.engine.backend import Backend

log = logging.getLogger(__name__)
_FORGET_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A namespace whose index stands on one run of Redis, and how much of it (0 to 1) and how many pieces it covers.

    Of two with one `made` no index was made in between.
    """

    keys: Keys
    run_id: str
    made: int
    progress: float = 0.0
    documents: int = 0


class Namespaces:
    """The namespaces that this process used lately."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[str, Prepared] = {}
        self._used: dict[str, float] = {}
        self._made = count()
        self._preparing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._look_over = LookOver(backend.settings.vector_store)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def documents(self, name: str) -> int:
        """Pieces that a namespace's index covers, as last seen."""
        known = self._known.get(name)
        return known.documents if known else 0

    async def get(self, name: str, *, renew: bool = False) -> Prepared:
        """Make sure that a namespace has its index; `renew` says that it was just found missing.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
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

    async def covered(self, before: Prepared) -> float:
        """Say how much of a namespace its index covered at the least, from `before` until now.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        now = await self.get(before.keys.namespace)
        return min(before.progress, now.progress) if now.made == before.made else 0.0

    def doubt(self) -> None:
        """Namespaces may lie elsewhere now: until that is looked at, no index is known to cover all of its own."""
        for name, known in self._known.items():
            self._known[name] = replace(known, run_id="", made=next(self._made), progress=0.0)

    async def look_after(self) -> None:
        """Make indexes anew that vanished while nobody searched, and forget namespaces that nobody uses."""
        for name, known in list(self._known.items()):
            if self._used[name] < time.monotonic() - _FORGET_SECONDS:
                del self._known[name], self._used[name]
                self._preparing.pop(name, None)
                continue
            try:
                if not (await self._look(known)).run_id:
                    await self.get(name, renew=True)
                await self._look_over.once(await self._backend.client(), known.keys)
            except MemoryServiceError as error:
                log.warning("namespace %s: %s", name, error.message)
            except Exception:
                log.exception("namespace %s could not be looked at", name)

    async def _make(self, name: str) -> Prepared:
        run_id, made = self._backend.run_id, next(self._made)
        if name in self._known:  # before there is another index: nobody may take it for the one before
            self._known[name] = replace(self._known[name], made=made, progress=0.0)
        client = await self._backend.client()
        async with store_errors():
            models = await index.ensure_namespace(client, name, self._backend.settings.vector_store)
        self._backend.known_models.put(name, models)
        self._known[name] = Prepared(Keys(name), run_id, made)
        return self._known[name]

    async def _look(self, known: Prepared) -> Prepared:
        """Ask how much an index covers; one that is missing belongs to no run of Redis."""
        covered = await self._backend.read(lambda client: index.coverage(client, known.keys.index_alias))
        if covered is None:
            found = replace(known, run_id="", progress=0.0, documents=0)
        else:
            found = replace(known, progress=covered.progress, documents=covered.documents)
        latest = self._known.get(known.keys.namespace)
        if latest and latest.made == known.made:
            self._known[known.keys.namespace] = found
        return found
