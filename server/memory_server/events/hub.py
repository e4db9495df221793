"""The readers of event streams in this process.

On a single Redis one reader serves all namespaces. On a cluster each namespace with listeners has its own reader,
because no read crosses slots.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from memory_core.cancellation import cancel
from memory_server.engine.backend import Backend
from memory_server.engine.known_models import KnownModels
from memory_server.events.audience import Audience
from memory_server.events.entries import Position
from memory_server.events.listeners import Follower, Waiter
from memory_server.events.reader import Reader

_MOST_IDLE = 32


class Hub:
    """Offers every event to the listeners of its namespace, in order and once."""

    def __init__(self, backend: Backend, models: KnownModels) -> None:
        self._backend = backend
        self._models = models
        self._readers: dict[str, tuple[Reader, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Hub]:
        """Read until left."""
        try:
            yield self
        finally:
            self.close()
            await cancel([*(task for _, task in self._readers.values()), *self._ending])

    def close(self) -> None:
        """End all waits now, since the server is about to stop."""
        self._closed = True
        for reader, _ in self._readers.values():
            reader.close()

    def count(self, namespace: str) -> int:
        """Count the listeners of a namespace."""
        found = self._readers.get(self._name(namespace))
        return found[0].count(namespace) if found else 0

    @contextmanager
    def listening(self, namespace: str, listener: Waiter | Follower, at: Position) -> Generator[Audience]:
        """Offer a listener what comes after `at`, the end of the stream as it was read a moment ago."""
        name = self._name(namespace)
        if name not in self._readers:
            self._end_idle()
            reader = Reader(self._backend, self._models)
            self._readers[name] = reader, asyncio.create_task(reader.run(), name="events")
        reader, _ = self._readers[name]
        if self._closed:
            reader.close()
        with reader.listening(namespace, listener, at) as audience:
            yield audience

    def _end_idle(self) -> None:
        """Close readers without listeners once there are many; a few are kept because listeners often return."""
        idle = [name for name, (reader, _) in self._readers.items() if not reader.count(name)]
        for name in idle if len(idle) > _MOST_IDLE else ():
            reader, task = self._readers.pop(name)
            reader.close()
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _name(self, namespace: str) -> str:
        return namespace if self._backend.is_scattered else ""
