"""Caches the models of namespaces, so briefly that a change of model takes effect soon."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from cachetools import LRUCache

from memory_core.errors import StoreUnavailable
from memory_core.records.keys import Keys
from memory_core.records.model import Model, Models, read_models
from memory_core.redis_client import Client
from memory_core.settings.settings import VectorStoreSettings

MODELS_SECONDS = 1.0
"""How long a process may still use the old model after a change. Its answers stay correct meanwhile."""
_MOST = 10_000
Read = Callable[[Callable[[Client], Awaitable[Models | None]]], Awaitable[Models | None]]


class KnownModels:
    """The models of namespaces as of a moment ago; `read` runs a command on Redis."""

    def __init__(self, read: Read, settings: VectorStoreSettings) -> None:
        self._read, self._settings = read, settings
        self._known: LRUCache[str, tuple[float, Models]] = LRUCache(_MOST)

    async def get(self, namespace: str, *, afresh: bool = False) -> Models:
        """Return a namespace's models; the settings' for a new one. Raises StoreUnavailable if none are cached."""
        read_at, known = self._known.get(namespace, (0.0, None))
        started = time.monotonic()
        if known and not afresh and started < read_at + MODELS_SECONDS:
            return known
        try:
            found = await self._read(lambda client: read_models(client, Keys(namespace)))
        except StoreUnavailable:
            if known is None:
                raise
            return known  # a write waits for Redis anyway, and an older model is correct too
        models = found or Models(self._settings.model)
        self._known[namespace] = started, models
        return models

    async def current(self, namespace: str) -> Model:
        return (await self.get(namespace)).current

    def put(self, namespace: str, models: Models) -> None:
        self._known[namespace] = time.monotonic(), models
