"""Answers requests to the bulk engine: from their stream, beside the asks and jobs, never before an embedding."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from functools import partial

from pydantic import BaseModel
from redis import exceptions as redis_errors

from memory_core import keys, redis_time
from memory_core.bulk import (
    MOST_QUERIES,
    MOST_RESULTS,
    BulkAsk,
    Clusters,
    Duplicates,
    Nearest,
    Request,
    pack_body,
)
from memory_core.connection import Client
from memory_core.errors import InvalidArgument
from memory_core.sealing import Transports
from memory_core.sidecars import BulkStatus
from memory_core.streams import BadMessage, Fields, Reply
from memory_core.vectors import from_bytes, normalise
from memory_embedder.bulk.array_module import Arrays
from memory_embedder.bulk.engine import BulkEngine
from memory_embedder.bulk.faiss_index import Faiss
from memory_embedder.bulk.mirror_cache import Shelf, TooLarge
from memory_embedder.bulk.numerics import DeadlinePassed
from memory_embedder.engines.encoder import Encoder
from memory_embedder.streams import groups
from memory_embedder.streams.asks import REPLIES_KEPT, REPLY_SECONDS
from memory_embedder.streams.outbox import Outbox

_log = logging.getLogger(__name__)
_READ_AT_ONCE = 8
_AT_ONCE = 4
_REPLY_MARGIN = 0.05
_REPLY_PREFIX = keys.reply("")[:-1]


class BulkDesk:
    """Requests between their stream and their answer. `memory_bytes` is the budget of all mirrors."""

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
        self._shelf: Shelf | None = None
        self._engine: BulkEngine | None = None
        self._opening = asyncio.Lock()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._at_work: dict[tuple[str, bytes], asyncio.Task[None]] = {}
        self._requests = 0

    async def _open(self) -> tuple[BulkEngine, Shelf]:
        """Load the libraries for the first request, in a thread: a sidecar that only embeds needs none of them."""
        async with self._opening:
            if self._engine is None or self._shelf is None:
                self._engine = await asyncio.to_thread(lambda: BulkEngine(Arrays(self._encoder.device), Faiss()))
                field = keys.vector_field(self._encoder.name)
                self._shelf = Shelf(self._client, self._engine, field, self._encoder.dimension, self._budget)
        return self._engine, self._shelf

    async def close(self) -> None:
        """Answer no more."""
        for task in list(self._at_work.values()):
            task.cancel()
        await asyncio.gather(*self._at_work.values(), return_exceptions=True)
        if self._shelf:
            await self._shelf.close()

    def status(self) -> BulkStatus:
        """What the heartbeat says; what it computes with is known once it was asked something."""
        shelf, engine = self._shelf, self._engine
        if shelf is None or engine is None:
            return BulkStatus(arrays="idle", memory_total=self._budget)
        indexes: dict[str, int] = {}
        for kept in shelf.kept:
            if kept.index:
                indexes[kept.index.kind] = indexes.get(kept.index.kind, 0) + 1
        return BulkStatus(
            arrays=engine.arrays.name,
            faiss=engine.faiss.name,
            faiss_gpus=engine.faiss.gpus,
            fallback=engine.arrays.fallback,
            namespaces=sum(kept.filled for kept in shelf.kept),
            vectors=sum(kept.mirror.living for kept in shelf.kept),
            memory_used=shelf.nbytes,
            memory_total=shelf.budget,
            indexes=indexes,
            filling=sum(not kept.filled for kept in shelf.kept),
            requests_total=self._requests,
        )

    async def read(self, reader: Client, stream: str, block_ms: int) -> None:
        """Wait up to `block_ms` for requests on one lane and begin them."""
        async with self._room:
            pass  # what cannot be begun soon is left for another sidecar
        found = await groups.read(
            reader, stream, self._consumer, count=_READ_AT_ONCE, block_ms=block_ms, make_stream=True
        )
        self._begin(stream, found)

    async def recover(self, lease_ms: int) -> None:
        """Take over requests of dead sidecars; those whose deadline passed are dropped on the way."""
        for lane in range(keys.LANES):
            stream = keys.bulk(lane, self._encoder.name)
            idle = await groups.idle_entries(self._client, stream, idle_ms=lease_ms, count=_READ_AT_ONCE)
            free = [item.entry for item in idle if (stream, item.entry) not in self._at_work]
            self._begin(stream, await groups.claim(self._client, stream, self._consumer, free, idle_ms=lease_ms))

    async def keep_up(self) -> None:
        """Follow what happens in the namespaces that are mirrored."""
        if self._shelf:
            await self._shelf.keep_up()

    def _begin(self, stream: str, found: list[groups.Entry]) -> None:
        for entry, fields in found:
            task = asyncio.create_task(self._serve(stream, entry, fields))
            self._at_work[stream, entry] = task
            task.add_done_callback(lambda _, key=(stream, entry): self._at_work.pop(key, None))

    async def _serve(self, stream: str, entry: bytes, fields: Fields) -> None:
        try:
            ask = BulkAsk.parse(fields, self._transports)
            if not ask.reply_to.startswith(_REPLY_PREFIX):
                raise BadMessage("the reply goes to no reply stream")
        except BadMessage as error:
            _log.warning("a request on %s is dropped: %s", stream, error)
            self._settle(stream, entry, None)
            return
        self._requests += 1
        reply = Reply(ask.id, error=self._refusal(ask))
        if ask.request and not reply.error:
            async with self._room:
                reply = await self._answer(ask, ask.request)
        if ask.seal in self._transports:
            reply = replace(reply, seal=ask.seal)
        self._settle(stream, entry, (ask.reply_to, reply) if ask.deadline > redis_time.now() * 1000 else None)

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
        left = ask.deadline / 1000 - redis_time.now() - _REPLY_MARGIN
        try:
            async with asyncio.timeout(left):
                body = await self._compute(ask.namespace, request, time.monotonic() + left)
        except (TimeoutError, DeadlinePassed):
            return Reply(ask.id, error="deadline: there was not time enough; the mirror may still be filling")
        except TooLarge as error:
            return Reply(ask.id, error=f"too_large: {error}")
        except InvalidArgument as error:
            return Reply(ask.id, error=f"invalid_argument: {error.message}")
        except (redis_errors.RedisError, OSError, MemoryError) as error:
            _log.warning("a bulk request failed: %s", type(error).__name__)
            return Reply(ask.id, error=f"bulk_failed: {type(error).__name__}")
        except Exception as error:
            _log.exception("a bulk request failed")
            return Reply(ask.id, error=f"bulk_failed: {type(error).__name__}")
        return Reply(ask.id, vectors=pack_body(body))

    async def _compute(self, namespace: str, request: Request, deadline: float) -> BaseModel:
        """Raises: TimeoutError, DeadlinePassed, TooLarge, InvalidArgument; RedisError when Redis is away."""
        engine, shelf = await self._open()
        kept, seen = await shelf.snapshot(namespace, request.selection)
        match request:
            case Nearest():
                dimension = self._encoder.dimension
                if len(request.queries) % (4 * dimension):
                    raise InvalidArgument(f"queries are no rows of {dimension} numbers")
                queries = normalise(from_bytes(request.queries, dimension), dimension)
                index = None
                if not request.exact:
                    index = shelf.index_for(kept, request.index_type, request.rebuild_threshold)
                return await asyncio.to_thread(engine.nearest, seen, request, queries, index, deadline)
            case Duplicates():
                return await asyncio.to_thread(engine.duplicates, seen, request, deadline)
            case Clusters():
                return await asyncio.to_thread(engine.clusters, seen, request, deadline)

    def _settle(self, stream: str, entry: bytes, reply: tuple[str, Reply] | None) -> None:
        self._outbox.put(partial(self._send, stream, entry, reply))

    async def _send(self, stream: str, entry: bytes, reply: tuple[str, Reply] | None) -> None:
        if reply:
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.xadd(reply[0], reply[1].fields(self._transports), maxlen=REPLIES_KEPT, approximate=True)
                pipe.expire(reply[0], REPLY_SECONDS)
                await pipe.execute()
        await self._client.xackdel(stream, keys.GROUP, entry, ref_policy="ACKED")
