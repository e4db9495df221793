"""Client of the sidecars' bulk engine."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from cachetools import TTLCache

from memory_core.errors import BulkUnavailable, StoreFull
from memory_core.records import keys, redis_time
from memory_core.records.ids import new_id
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, to_bytes
from memory_core.store import sidecar
from memory_core.store.bulk_messages import (
    BulkAsk,
    Clusters,
    ClustersFound,
    Duplicates,
    DuplicatesFound,
    Nearest,
    NearestFound,
    Request,
    Selection,
    read_body,
)
from memory_core.store.streams import BadMessage, Reply
from memory_server.engine.known_models import KnownModels
from memory_server.engine.redis_backend import Backend
from memory_server.engine.sidecars.replies import Replies, until_a_key_fits

Answer = TypeVar("Answer", NearestFound, DuplicatesFound, ClustersFound)
Piece = tuple[str, int, float]
"""A memory's id, the number of its piece, and the cosine."""
_TRUST_SECONDS = 2.0


class BulkClient:
    """Sends requests to the bulk engine."""

    def __init__(self, backend: Backend, models: KnownModels, replies: Replies) -> None:
        self._backend, self._models, self._replies = backend, models, replies
        self._offered: TTLCache[str, frozenset[str]] = TTLCache(1, ttl=_TRUST_SECONDS)

    async def is_offered(self, model: Model) -> bool:
        """Whether a live sidecar has an engine for a model and our transport key; cached for two seconds."""
        models = self._offered.get("models")
        if models is None:
            fits = (one for one in await self._backend.read(sidecar.living) if one.bulk is not None)
            transports = self._backend.transports
            models = frozenset(one.model for one in fits if not sidecar.lacks_key(transports, one))
            self._offered["models"] = models
        return model.name in models

    async def nearest(
        self,
        namespace: str,
        selection: Selection,
        queries: Matrix,
        k: int,
        *,
        exact: bool,
        wait: float,
        model: Model | None = None,
    ) -> list[list[Piece]]:
        """Find the k nearest pieces to each query, shape (n, dimension). Raises BulkUnavailable or StoreUnavailable."""
        vector_store = self._backend.settings.vector_store
        request = Nearest(
            selection=selection,
            queries=to_bytes(queries),
            k=k,
            exact=exact,
            index_type=vector_store.index_type,
            rebuild_threshold=vector_store.rebuild_threshold,
        )
        model = model or await self._models.current(namespace)
        found = await self._ask(namespace, request, model, NearestFound, wait)
        ids, pieces = found.ids, found.pieces
        places = np.frombuffer(found.places, dtype="<i4").reshape(-1, found.k).tolist()
        scores = np.frombuffer(found.scores, dtype="<f4").reshape(-1, found.k).tolist()
        return [
            [(ids[place], pieces[place], score) for place, score in zip(*row, strict=True) if place >= 0]
            for row in zip(places, scores, strict=True)
        ]

    async def duplicates(self, namespace: str, request: Duplicates, wait: float) -> DuplicatesFound:
        """Find near-duplicate pairs; raises as `nearest` does."""
        return await self._ask(namespace, request, await self._models.current(namespace), DuplicatesFound, wait)

    async def clusters(self, namespace: str, request: Clusters, wait: float) -> ClustersFound:
        """Cluster a selection by meaning; raises as `nearest` does."""
        return await self._ask(namespace, request, await self._models.current(namespace), ClustersFound, wait)

    async def _ask(self, namespace: str, request: Request, model: Model, kind: type[Answer], wait: float) -> Answer:
        if not await self.is_offered(model):
            raise BulkUnavailable("no sidecar offers the bulk engine", hint="see gpu_status; start another sidecar")
        deadline = redis_time.now() + wait

        async def send() -> Reply:
            ask = BulkAsk(
                id=new_id(),
                reply_to=self._replies.address,
                namespace=namespace,
                model=model.name,
                deadline=int(deadline * 1000),
                request=request,
                seal=self._backend.transports.current,
            )
            left = max(deadline - redis_time.now(), 0.0)
            return await self._replies.exchange(keys.bulk(keys.lane_of(namespace), model.name), ask, left)

        try:
            reply = await until_a_key_fits(send)
        except TimeoutError:
            raise BulkUnavailable(f"the bulk engine did not answer within {wait:g} s", retry_after=5.0) from None
        except StoreFull as error:
            raise BulkUnavailable(f"no sidecar can be asked: {error.message}", hint=error.hint) from error
        if reply.error:
            raise BulkUnavailable(f"the bulk engine refused: {reply.error}", hint="see gpu_status", retry_after=5.0)
        try:
            return read_body(reply.vectors, kind)
        except BadMessage as error:
            raise BulkUnavailable(f"the bulk engine's answer cannot be read: {error}") from error
