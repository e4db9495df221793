"""Remembers which model answers in a namespace, and for so short that a change of model soon shows."""

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
"""How long a process may not know that another model answers now. What the old one answers is right meanwhile."""
_MOST = 10_000
Read = Callable[[Callable[[Client], Awaitable[Models | None]]], Awaitable[Models | None]]


class KnownModels:
    """The models of namespaces as they were a moment ago; `read` runs a command on Redis."""

    def __init__(self, read: Read, settings: VectorStoreSettings) -> None:
        self._read = read
        self._settings = settings
        self._known: LRUCache[str, tuple[float, Models]] = LRUCache(_MOST)

    async def get(self, namespace: str, *, afresh: bool = False) -> Models:
        """Give the models of a namespace; one that is new will have the settings' own.

        Raises StoreUnavailable (Redis does not answer, and nothing was known before).
        """
        read_at, known = self._known.get(namespace, (0.0, None))
        started = time.monotonic()
        if known and not afresh and started < read_at + MODELS_SECONDS:
            return known
        try:
            found = await self._read(lambda client: read_models(client, Keys(namespace)))
        except StoreUnavailable:
            if known is None:
                raise
            return known  # a write waits for Redis, and is right by an older model too
        models = found or Models(self._settings.model)
        self._known[namespace] = started, models
        return models

    async def current(self, namespace: str) -> Model:
        """Give the model that answers in a namespace."""
        return (await self.get(namespace)).current

    def put(self, namespace: str, models: Models) -> None:
        """Take what was read elsewhere just now."""
        self._known[namespace] = time.monotonic(), models
