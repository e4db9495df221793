"""Stores the last cursor of each agent, many in one write, so that no call waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from memory_core.cancellation import cancel
from memory_core.errors import MemoryServiceError
from memory_core.records.keys import Keys
from memory_server.engine.redis_backend import Backend
from memory_server.events.entries import Position

log = logging.getLogger(__name__)
_LIFETIME_SECONDS = 30 * 86_400
_BATCH_SECONDS = 0.01
_BATCH = 500


class Positions:
    """The last cursor that each agent received."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._pending: dict[tuple[str, str], Position] = {}
        self._any = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Positions]:
        """Write cursors while the block runs, and the rest at its end."""
        writer = asyncio.create_task(self._write_forever(), name="seen")
        try:
            yield self
        finally:
            await cancel([writer])
            await self._write()

    def note(self, namespace: str, agent: str, position: Position) -> None:
        """Store a cursor shortly."""
        self._pending[namespace, agent] = position
        self._any.set()

    async def get(self, namespace: str, agent: str) -> str | None:
        """Return an agent's last cursor; None if it had none in the last 30 days."""
        if pending := self._pending.get((namespace, agent)):
            return pending.id
        found = await self._backend.read(lambda client: client.get(Keys(namespace).seen(agent)))
        return str(found, "ascii") if found else None

    async def _write_forever(self) -> None:
        while True:
            await self._any.wait()
            await asyncio.sleep(_BATCH_SECONDS)
            await self._write()

    async def _write(self) -> None:
        """Write the cursors. A lost one only makes events count as unread again.

        None is kept in a namespace that does not exist: waiting there must not create it.
        """
        self._any.clear()
        noted = list(self._pending.items())
        for start in range(0, len(noted), _BATCH):
            part = noted[start : start + _BATCH]
            try:
                pipe = (await self._backend.client()).pipeline(transaction=False)
                existing = [one for one in {namespace for (namespace, _), _ in part} if await self._backend.exists(one)]
                for (namespace, agent), position in part:
                    if namespace not in existing:
                        continue
                    pipe.set(Keys(namespace).seen(agent), position.id, ex=_LIFETIME_SECONDS)
                await self._backend.read(lambda _, pipe=pipe: pipe.execute())
            except MemoryServiceError as error:
                log.warning("%d event cursors were not stored: %s", len(part), error.message)
        for key, position in noted:
            if self._pending.get(key) == position:
                del self._pending[key]
