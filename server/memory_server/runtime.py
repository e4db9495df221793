"""Starts Redis, the sidecar and the services in the background after `initialize` is answered.

The client waits for `initialize`, so heavy modules are imported later: by a thread after the first answer, or by the
first tool call that needs them.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from memory_core.observe import tracing
from memory_core.settings.settings import Settings
from memory_server.access.gate import Gate
from memory_server.engine.counters import Counters
from memory_server.engine.presence import Presence
from memory_server.security.audit.recorder import Recorder

if TYPE_CHECKING:
    from memory_server.engine.redis_backend import Backend
    from memory_server.service import Service

log = logging.getLogger(__name__)
_HEAVY = """
memory_server.service memory_core.records.token memory_server.local.attach memory_server.memories.store
memory_server.memories.get memory_server.memories.update memory_server.memories.clear memory_server.search.search
memory_server.operations.stats.memory_stats memory_server.agents.registry memory_server.tasks.submit
memory_server.sharing.grants memory_server.sharing.shared_context memory_server.events.waiting
memory_server.events.live_feed memory_server.operations.sweeper
""".split()


class Runtime:
    """The service of this process, once it has started."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.recorder = Recorder()
        self.counters = Counters()
        self.presence = Presence()
        self.gate = Gate(settings, self.recorder, self.counters, self.backend, self.presence)
        self._first_answer = asyncio.Event()
        self._service: asyncio.Future[Service] = asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def running(self, *, patience: float = 0.0) -> AsyncGenerator[Runtime]:
        """Start the service in the background, `patience` seconds after now or after the first answer."""
        leaving = asyncio.Event()
        task = asyncio.create_task(self._run(patience, leaving), name="service")
        try:
            yield self
        finally:
            leaving.set()
            await asyncio.gather(task, return_exceptions=True)

    async def service(self) -> Service:
        """Wait until the service can take calls; it may still be connecting to Redis."""
        self._first_answer.set()
        return await asyncio.shield(self._service)

    async def backend(self) -> Backend:
        """Wait for the service; its Redis may still be connecting."""
        return (await self.service()).backend

    async def until_first_answer(self) -> None:
        """Wait until the client has its first answer, or a call waits for the service."""
        await self._first_answer.wait()

    def answered(self) -> None:
        """Record that the client has its first answer."""
        self._first_answer.set()

    def stop_waiting(self) -> None:
        """End all waiting calls and subscriptions, because the server is about to stop."""
        if self._service.done() and not self._service.cancelled() and not self._service.exception():
            self._service.result().events.close()

    async def _run(self, patience: float, leaving: asyncio.Event) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._first_answer, leaving)]
        await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if leaving.is_set():
            return
        traced = False
        try:
            traced = await asyncio.to_thread(tracing.start, self.settings, "redis-memory", version("redis-memory-gpu"))
            for module in _HEAVY:
                await asyncio.to_thread(importlib.import_module, module)
            from memory_server.operations.sweeper import sweeping
            from memory_server.service import Service

            async with AsyncExitStack() as stack:
                starting = Service(self.settings, self.recorder, self.counters, self.presence)
                service = await stack.enter_async_context(starting.running())
                await stack.enter_async_context(sweeping(service))
                self._service.set_result(service)
                await leaving.wait()
        except Exception as error:
            log.exception("the service stopped")
            if not self._service.done():
                self._service.set_exception(error)
        finally:
            if traced:
                await asyncio.to_thread(tracing.stop)
