"""Sends requests to sidecars by stream and receives the replies on this process's own stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol

from redis.exceptions import RedisError

from memory_core.cancellation import cancel
from memory_core.crypto.sealing import Transports
from memory_core.errors import MemoryServiceError
from memory_core.records import keys
from memory_core.records.ids import new_id
from memory_core.redis_client import Client
from memory_core.store.connection import connect, store_errors
from memory_core.store.streams import BadMessage, Reply, entries
from memory_server.engine.redis_backend import Backend

log = logging.getLogger(__name__)
_BLOCK_MS = 5000
_NO_KEY = "not_supported"
_TRIES_FOR_KEY = 3


class Question(Protocol):
    """A request. `seal` is the id of the transport key of its body and of the reply's; empty for clear ones."""

    @property
    def id(self) -> str: ...
    @property
    def seal(self) -> str: ...
    def fields(self, transports: Transports) -> dict[str, str | int | bytes]: ...


async def until_a_key_fits(ask: Callable[[], Awaitable[Reply]]) -> Reply:
    """Ask, a few times if sidecars without the transport key take the question."""
    reply = await ask()
    for _ in range(_TRIES_FOR_KEY):
        if not reply.error.startswith(_NO_KEY):
            break
        reply = await ask()
    return reply


class Replies:
    """Reads the reply stream; `last_at` is the monotonic time of the last reply."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._server_id = new_id()
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._listening = asyncio.Event()
        self._last_problem = ""  # logged once, not at each attempt
        self.last_at = 0.0

    @property
    def address(self) -> str:
        return keys.reply(self._server_id)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Replies]:
        listener = asyncio.create_task(self._listen())
        try:
            yield self
        finally:
            await cancel([listener])

    async def exchange(self, stream: str, question: Question, wait: float) -> Reply:
        """Send a question and wait for its reply. Raises TimeoutError or StoreUnavailable."""
        client, transports = await self._backend.client(), self._backend.transports
        future = self._waiting[question.id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(wait):
                await self._listening.wait()
                async with store_errors():
                    await client.xadd(stream, question.fields(transports))
                reply = await future
        finally:
            del self._waiting[question.id]
        if not reply.error and reply.seal != question.seal:
            return replace(reply, vectors=b"", error="not_sealed: a sidecar answered a sealed question in clear")
        return reply

    async def _listen(self) -> None:
        while True:
            try:
                await self._backend.client()
                async with connect(self._backend.url, timeout=_BLOCK_MS / 1000 + 5) as client:
                    await self._read(client)
            except (RedisError, OSError, MemoryServiceError) as error:
                reason = error.message if isinstance(error, MemoryServiceError) else type(error).__name__
                if reason != self._last_problem:
                    log.warning("reply stream: %s", reason)
                self._last_problem = reason
                await asyncio.sleep(0.2)
            finally:
                self._listening.clear()

    async def _read(self, client: Client) -> None:
        """Deliver replies and delete them. A saved position would be wrong after Redis's clock is set back."""
        self._listening.set()
        while True:
            answer = await client.xread({self.address: "0"}, block=_BLOCK_MS, count=256)
            self._last_problem = ""
            found = {entry: fields for _, entry, fields in entries(answer)}
            for fields in found.values():
                self._deliver(fields)
            if found:
                await client.xdel(self.address, *found)

    def _deliver(self, fields: dict[bytes, bytes]) -> None:
        try:
            reply = Reply.parse(fields, self._backend.transports)
        except BadMessage as error:
            log.warning("%s", error)
            return
        self.last_at = time.monotonic()
        future = self._waiting.get(reply.ask_id)
        if future and not future.done():
            future.set_result(reply)
