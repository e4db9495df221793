"""Embeds texts through the sidecars. While requests are under way, further texts gather for the next one."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import numpy as np
from cachetools import TTLCache

from memory_core.cancellation import cancel
from memory_core.errors import EmbeddingUnavailable, MemoryServiceError, StoreFull
from memory_core.observe import tracing
from memory_core.records import keys, redis_time
from memory_core.records.ids import new_id
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, from_bytes, from_stored, normalise, to_stored
from memory_core.store import sidecar
from memory_core.store.streams import Ask, Reply
from memory_server.engine.known_models import KnownModels
from memory_server.engine.redis_backend import Backend
from memory_server.engine.sidecars.replies import Replies, until_a_key_fits
from memory_server.engine.sidecars.vector_cache import Asker, VectorCache, Vectors

log = logging.getLogger(__name__)
_TRUST_SECONDS = 2.0  # a sidecar that answered this recently counts as alive
_ASKS_AT_ONCE = 4
_TEXTS_PER_ASK = 32  # small enough that a sidecar can serve another agent in between

Request = tuple[str, asyncio.Future[bytes], str]
"""A text, the future of its vector, and its trace."""


class Embeddings:
    """Returns vectors from the cache or from sidecars."""

    def __init__(self, backend: Backend, models: KnownModels) -> None:
        settings = backend.settings
        self.cache = VectorCache(backend, settings.cache)
        self._backend, self._models = backend, models
        self.replies = Replies(backend)
        self._queued: defaultdict[tuple[int, Model], deque[Request]] = defaultdict(deque)
        self._answering: TTLCache[str, bool] = TTLCache(64, ttl=_TRUST_SECONDS)
        self._asking: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Embeddings]:
        async with self.replies.running():
            try:
                yield self
            finally:
                await cancel(tuple(self._asking))

    async def embed(
        self,
        texts: Sequence[str],
        asker: Asker,
        *,
        model: Model | None = None,
        wait: float | None = None,
        secret: bool = False,
        asked: asyncio.Event | None = None,
    ) -> Matrix:
        """Return unit vectors, shape (len(texts), dimension); those of `secret` texts are not cached.

        `asked` is set when the sidecars have their requests. Raises EmbeddingUnavailable or StoreUnavailable.
        """
        model = model or await self._models.current(asker.namespace)
        known = {} if secret else await self.cache.get(asker, texts, model)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        with tracing.span("embed", texts=len(texts), asked_for=len(missing)):
            if missing:
                seconds = wait or self._backend.settings.embed_wait_seconds
                fresh = await self._ask_for(missing, asker.namespace, model, seconds, asked)
                known |= zip(missing, fresh, strict=True)
                if not secret:
                    await self._remember(asker, {text: known[text] for text in missing}, model)
        return _rows(known, texts, model)

    async def known(self, texts: Sequence[str], asker: Asker, model: Model) -> Matrix | None:
        """Return the vectors of texts if this process has all of them cached."""
        known = await self.cache.get(asker, texts, model, far=False)
        return _rows(known, texts, model) if all(text in known for text in texts) else None

    async def _remember(self, asker: Asker, vectors: Vectors, model: Model) -> None:
        try:
            await self.cache.put(asker, vectors, model)
        except MemoryServiceError as error:
            log.warning("%d vectors were not cached: %s", len(vectors), error.message)

    async def _ask_for(
        self, texts: Sequence[str], namespace: str, model: Model, wait: float, asked: asyncio.Event | None
    ) -> list[bytes]:
        await self._check_alive(model)
        where, loop = (keys.lane_of(namespace), model), asyncio.get_running_loop()
        futures = [loop.create_future() for _ in texts]
        trace = tracing.carrier()
        self._queued[where].extend((text, future, trace) for text, future in zip(texts, futures, strict=True))
        self._pump()
        if asked:
            asked.set()
        try:
            async with asyncio.timeout(wait):
                return await asyncio.gather(*futures)
        except TimeoutError:
            hint = "see gpu_status; start another sidecar"
            raise EmbeddingUnavailable(f"no sidecar answered within {wait:g} s", hint=hint, retry_after=2.0) from None

    def _pump(self) -> None:
        """Send queued texts, lane by lane, while few requests are under way."""
        for (lane, model), queue in self._queued.items():
            while queue and len(self._asking) < _ASKS_AT_ONCE:
                batch = [queue.popleft() for _ in range(min(len(queue), _TEXTS_PER_ASK))]
                if batch := [one for one in batch if not one[1].done()]:
                    task = asyncio.create_task(self._ask(lane, model, batch))
                    self._asking.add(task)
                    task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        self._pump()

    async def _ask(self, lane: int, model: Model, batch: list[Request]) -> None:
        """Request a batch and pass each text its vector, or all the same error."""
        try:
            trace = next((trace for _, _, trace in batch if trace), "")
            vectors = await self._exchange(tuple(text for text, _, _ in batch), lane, model, trace)
        except MemoryServiceError as error:
            for _, future, _ in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future, _), vector in zip(batch, vectors, strict=True):
            if not future.done():
                future.set_result(vector)

    async def _exchange(self, texts: tuple[str, ...], lane: int, model: Model, trace: str) -> list[bytes]:
        """Ask a sidecar. Returns the unit vectors as Redis and the cache store them."""
        wait = self._backend.settings.embed_wait_seconds

        async def send() -> Reply:
            ask = Ask(
                id=new_id(),
                reply_to=self.replies.address,
                model=model.name,
                deadline=int((redis_time.now() + wait) * 1000),
                texts=texts,
                seal=self._backend.transports.current,
                trace=trace,
            )
            try:
                return await self.replies.exchange(keys.asks(lane, model.name), ask, wait)
            except TimeoutError:
                raise EmbeddingUnavailable(f"no sidecar answered within {wait:g} s", retry_after=2.0) from None
            except StoreFull as error:
                raise EmbeddingUnavailable(f"no sidecar can be asked: {error.message}", hint=error.hint) from error

        reply = await until_a_key_fits(send)
        if reply.error:
            raise EmbeddingUnavailable(f"the sidecar refused: {reply.error}", hint="see gpu_status")
        self._answering[model.name] = True
        rows = normalise(from_bytes(reply.vectors, reply.dimension), model.dimension)
        return [to_stored(row, model) for row in rows]

    async def _check_alive(self, model: Model) -> None:
        if model.name in self._answering:
            return
        living = await self._backend.read(sidecar.living)
        if any(one.model == model.name for one in living) or self._backend.starts_sidecar():
            return
        others = f" for {model.name}" if living else ""
        command = "redis-memory-embedder" + (f" --model {model.name}" if living else "")
        hint = f"start one: {command}"
        raise EmbeddingUnavailable(f"no embedding sidecar{others} is alive", hint=hint, retry_after=5.0)


def _rows(vectors: Vectors, texts: Sequence[str], model: Model) -> Matrix:
    rows = [from_stored(vectors[text], model.dimension) for text in texts]
    return np.array(rows, dtype=np.float32).reshape(len(texts), model.dimension)
