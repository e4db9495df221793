"""Vectors on request: asks go to the sidecars by stream, answers come back on this process's reply stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from redis.exceptions import RedisError

from memory_core import keys
from memory_core.connection import Client, connect, store_errors
from memory_core.errors import EmbeddingUnavailable
from memory_core.ids import new_id
from memory_core.streams import Ask, BadMessage, Reply, entries
from memory_core.vectors import Matrix, from_bytes, normalise
from memory_server.backend import Backend

log = logging.getLogger(__name__)
_BLOCK_MS = 5000
_TRUST_SECONDS = 2.0
"""A sidecar that answered this recently is taken to be alive."""


class Embeddings:
    """Asks sidecars for vectors and waits for them."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._server_id = new_id()
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._last_answer = 0.0
        self._listening = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Embeddings]:
        """Listen for replies until left."""
        listener = asyncio.create_task(self._listen())
        try:
            yield self
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    async def embed(self, texts: list[str], namespace: str) -> Matrix:
        """Get unit vectors, shape (len(texts), dimension), within the configured wait.

        Raises:
            EmbeddingUnavailable: no sidecar lives, none answered in time, or it refused.
            StoreUnavailable: Redis does not answer.
        """
        vector_store, wait = self._backend.settings.vector_store, self._backend.settings.embed_wait_seconds
        await self._check_alive()
        ask = Ask(
            id=new_id(),
            reply_to=keys.reply(self._server_id),
            model=vector_store.embedding_model,
            deadline=int((time.time() + wait) * 1000),
            texts=tuple(texts),
        )
        reply = await self._exchange(ask, keys.asks(keys.lane_of(namespace)), wait)
        if reply.error:
            raise EmbeddingUnavailable(f"the sidecar refused: {reply.error}", hint="see gpu_status")
        return normalise(from_bytes(reply.vectors, reply.dimension), vector_store.vector_dimension)

    async def _exchange(self, ask: Ask, lane: str, wait: float) -> Reply:
        client = await self._backend.client()
        future = asyncio.get_running_loop().create_future()
        self._waiting[ask.id] = future
        try:
            async with asyncio.timeout(wait):
                await self._listening.wait()
                async with store_errors():
                    await client.xadd(lane, ask.fields())
                return await future
        except TimeoutError:
            raise EmbeddingUnavailable(
                f"no sidecar answered within {wait:g} s", hint="see gpu_status; start another sidecar", retry_after=2.0
            ) from None
        finally:
            del self._waiting[ask.id]

    async def _check_alive(self) -> None:
        if time.monotonic() - self._last_answer < _TRUST_SECONDS:
            return
        alive = await self._backend.read(lambda client: client.zcount(keys.SIDECARS, time.time(), "+inf"))
        if not alive and not self._backend.starts_sidecar():
            raise EmbeddingUnavailable(
                "no embedding sidecar is alive", hint="start one: redis-memory-embedder", retry_after=5.0
            )

    async def _listen(self) -> None:
        await self._backend.client()
        while True:
            client = connect(self._backend.url, timeout=_BLOCK_MS / 1000 + 5)
            try:
                await self._read_replies(client)
            except (RedisError, OSError) as error:
                log.warning("reply stream: %s", type(error).__name__)
                await asyncio.sleep(0.2)
            finally:
                self._listening.clear()
                await client.aclose()

    async def _read_replies(self, client: Client) -> None:
        stream = keys.reply(self._server_id)
        newest = await client.xrevrange(stream, count=1)
        position = newest[0][0] if newest else "0"
        self._listening.set()
        while True:
            answer = await client.xread({stream: position}, block=_BLOCK_MS, count=256)
            for _, entry, fields in entries(answer):
                position = entry
                self._deliver(fields)

    def _deliver(self, fields: dict[bytes, bytes]) -> None:
        try:
            reply = Reply.parse(fields)
        except BadMessage as error:
            log.warning("%s", error)
            return
        self._last_answer = time.monotonic()
        future = self._waiting.get(reply.ask_id)
        if future and not future.done():
            future.set_result(reply)
