"""Consumes the bulk streams and answers their requests in threads, so that asks and jobs do not wait."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from functools import partial

from pydantic import BaseModel
from redis import exceptions as redis_errors

from memory_core.crypto.sealing import Transports
from memory_core.errors import InvalidArgument
from memory_core.records import keys, redis_time
from memory_core.records.vectors import from_bytes, normalise
from memory_core.redis_client import Client
from memory_core.store.bulk_messages import (
    MOST_QUERIES,
    MOST_RESULTS,
    BulkAsk,
    Clusters,
    Duplicates,
    Nearest,
    Request,
    pack_body,
)
from memory_core.store.sidecar import BulkStatus
from memory_core.store.streams import BadMessage, Fields, Reply
from memory_embedder.bulk.array_module import ArrayModule
from memory_embedder.bulk.engine import BulkEngine
from memory_embedder.bulk.faiss_index import FaissLibrary
from memory_embedder.bulk.mirror_cache import MirrorCache, MirrorTooLarge
from memory_embedder.bulk.numerics import DeadlinePassed
from memory_embedder.engines.encoder import Encoder
from memory_embedder.streams import groups
from memory_embedder.streams.outbox import Outbox
from memory_embedder.streams.replies import check_reply_stream, send_reply

_log = logging.getLogger(__name__)
_READ_AT_ONCE = 8
_RUN_AT_ONCE = 4
_REPLY_SECONDS = 0.05
"""Time left for sending the reply before the deadline."""


class BulkConsumer:
    """Reads bulk requests, computes their answers and sends the replies. `memory_bytes` limits all mirrors."""

    def __init__(
        self,
        client: Client,
        encoder: Encoder,
        outbox: Outbox,
        consumer: str,
        memory_bytes: int,
        transports: Transports,
    ) -> None:
        self._client = client
        self._transports = transports
        self._encoder = encoder
        self._outbox = outbox
        self._consumer = consumer
        self._budget = memory_bytes
        self._mirrors: MirrorCache | None = None
        self._engine: BulkEngine | None = None
        self._open_lock = asyncio.Lock()
        self._slots = asyncio.Semaphore(_RUN_AT_ONCE)
        self._tasks: dict[tuple[str, bytes], asyncio.Task[None]] = {}
        self._requests = 0

    async def _open(self) -> tuple[BulkEngine, MirrorCache]:
        """Load CuPy and FAISS at the first request, in a thread. A sidecar that only embeds does not need them."""
        async with self._open_lock:
            if self._engine is None or self._mirrors is None:
                self._engine = await asyncio.to_thread(
                    lambda: BulkEngine(ArrayModule(self._encoder.device), FaissLibrary())
                )
                name, dimension = self._encoder.name, self._encoder.dimension
                self._mirrors = MirrorCache(self._client, self._engine, name, dimension, self._budget)
        return self._engine, self._mirrors

    async def close(self) -> None:
        """Cancel running requests and drop all mirrors."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._mirrors:
            await self._mirrors.close()

    def status(self) -> BulkStatus:
        """The bulk engine's part of the heartbeat. Its libraries are known after the first request."""
        mirrors, engine = self._mirrors, self._engine
        if mirrors is None or engine is None:
            return BulkStatus(arrays="idle", memory_total=self._budget)
        indexes: dict[str, int] = {}
        for cached in mirrors.mirrors:
            if cached.index:
                indexes[cached.index.kind] = indexes.get(cached.index.kind, 0) + 1
        return BulkStatus(
            arrays=engine.arrays.name,
            faiss=engine.faiss.name,
            faiss_gpus=engine.faiss.gpus,
            fallback=engine.arrays.fallback,
            namespaces=sum(cached.filled for cached in mirrors.mirrors),
            vectors=sum(cached.mirror.living for cached in mirrors.mirrors),
            memory_used=mirrors.nbytes,
            memory_total=mirrors.budget,
            indexes=indexes,
            filling=sum(not cached.filled for cached in mirrors.mirrors),
            requests_total=self._requests,
        )

    async def read(self, reader: Client, stream: str, block_ms: int) -> None:
        """Wait up to `block_ms` for requests on one stream and start them."""
        async with self._slots:
            pass  # a request that cannot start soon is left to another sidecar
        found = await groups.read(
            reader, stream, self._consumer, count=_READ_AT_ONCE, block_ms=block_ms, make_stream=True
        )
        self._start(stream, found)

    async def reclaim(self, lease_ms: int) -> None:
        """Claim the requests of dead sidecars. Requests whose deadline has passed are dropped."""
        for lane in range(keys.LANES):
            stream = keys.bulk(lane, self._encoder.name)
            idle = await groups.idle_entries(self._client, stream, idle_ms=lease_ms, count=_READ_AT_ONCE)
            free = [item.entry for item in idle if (stream, item.entry) not in self._tasks]
            self._start(stream, await groups.claim(self._client, stream, self._consumer, free, idle_ms=lease_ms))

    async def keep_up(self) -> None:
        """Update all filled mirrors."""
        if self._mirrors:
            await self._mirrors.keep_up()

    def _start(self, stream: str, found: list[groups.Entry]) -> None:
        for entry, fields in found:
            task = asyncio.create_task(self._handle(stream, entry, fields))
            self._tasks[stream, entry] = task
            task.add_done_callback(lambda _, key=(stream, entry): self._tasks.pop(key, None))

    async def _handle(self, stream: str, entry: bytes, fields: Fields) -> None:
        try:
            ask = BulkAsk.parse(fields, self._transports)
            check_reply_stream(ask.reply_to)
        except BadMessage as error:
            _log.warning("dropped a request on %s: %s", stream, error)
            self._finish(stream, entry, None)
            return
        self._requests += 1
        reply = Reply(ask.id, error=self._refusal(ask))
        if ask.request and not reply.error:
            async with self._slots:
                reply = await self._answer(ask, ask.request)
        if ask.seal in self._transports:
            reply = replace(reply, seal=ask.seal)
        self._finish(stream, entry, (ask.reply_to, reply) if ask.deadline > redis_time.now() * 1000 else None)

    def _refusal(self, ask: BulkAsk) -> str:
        if ask.model != self._encoder.name:
            return f"model_mismatch: this sidecar embeds with {self._encoder.name}"
        if ask.request is None:
            return "not_supported: this sidecar does not hold the transport key (MEMORY_TRANSPORT_KEY) of this request"
        if isinstance(ask.request, Nearest):
            count = len(ask.request.queries) // (4 * self._encoder.dimension)
            if not 1 <= count <= MOST_QUERIES or count * ask.request.k > MOST_RESULTS:
                return f"invalid_argument: at most {MOST_QUERIES} queries and {MOST_RESULTS} results in one request"
        return ""

    async def _answer(self, ask: BulkAsk, request: Request) -> Reply:
        left = ask.deadline / 1000 - redis_time.now() - _REPLY_SECONDS
        try:
            async with asyncio.timeout(left):
                body = await self._compute(ask.namespace, request, time.monotonic() + left)
        except (TimeoutError, DeadlinePassed):
            return Reply(ask.id, error="deadline: the time was too short; the mirror may still be filling")
        except MirrorTooLarge as error:
            return Reply(ask.id, error=f"too_large: {error}")
        except InvalidArgument as error:
            return Reply(ask.id, error=f"invalid_argument: {error.message}")
        except (redis_errors.RedisError, OSError, MemoryError) as error:
            _log.warning("a bulk request failed: %s", type(error).__name__)
            return Reply(ask.id, error=f"bulk_failed: {type(error).__name__}")
        except Exception as error:  # one request must not stop the sidecar
            _log.exception("a bulk request failed")
            return Reply(ask.id, error=f"bulk_failed: {type(error).__name__}")
        return Reply(ask.id, vectors=pack_body(body))

    async def _compute(self, namespace: str, request: Request, deadline: float) -> BaseModel:
        """Raises: TimeoutError, DeadlinePassed, MirrorTooLarge, InvalidArgument; RedisError if Redis is unreachable."""
        engine, mirrors = await self._open()
        cached, seen = await mirrors.snapshot(namespace, request.selection)
        match request:
            case Nearest():
                dimension = self._encoder.dimension
                if len(request.queries) % (4 * dimension):
                    raise InvalidArgument(f"queries are not rows of {dimension} numbers")
                queries = normalise(from_bytes(request.queries, dimension), dimension)
                index = None
                if not request.exact:
                    index = mirrors.index_for(cached, request.index_type, request.rebuild_threshold)
                return await asyncio.to_thread(engine.nearest, seen, request, queries, index, deadline)
            case Duplicates():
                return await asyncio.to_thread(engine.duplicates, seen, request, deadline)
            case Clusters():
                return await asyncio.to_thread(engine.clusters, seen, request, deadline)

    def _finish(self, stream: str, entry: bytes, reply: tuple[str, Reply] | None) -> None:
        self._outbox.put(partial(self._send, stream, entry, reply))

    async def _send(self, stream: str, entry: bytes, reply: tuple[str, Reply] | None) -> None:
        if reply:
            await send_reply(self._client, *reply, self._transports)
        await groups.acknowledge(self._client, stream, entry)
