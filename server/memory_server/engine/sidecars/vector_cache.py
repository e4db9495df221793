"""Caches vectors per agent: a hit on another agent's text would reveal that the text is stored."""

from __future__ import annotations

import hmac
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from cachetools import LFUCache, LRUCache, TTLCache

from memory_core.crypto.sealing import Key, Lock
from memory_core.errors import Tampered
from memory_core.records.keys import Keys, digest
from memory_core.records.model import Model
from memory_core.settings.settings import CacheSettings
from memory_core.slices import slices
from memory_server.engine.redis_backend import Backend

Vectors = dict[str, bytes]
_REMEMBERED_AGENTS = 10_000
_AT_ONCE = 100
"""Vectors that one write sends."""
_Near = tuple[str, str, str, str]


class Asker(Protocol):
    """The agent that texts belong to: a caller or a principal."""

    @property
    def namespace(self) -> str: ...
    @property
    def agent(self) -> str: ...


@dataclass(slots=True)
class Hits:
    """Hits of each tier."""

    process: int = 0
    redis: int = 0
    missed: int = 0


class VectorCache:
    """Vectors by model, agent and text, as stored bytes; `total` counts the hits of all agents."""

    def __init__(self, backend: Backend, settings: CacheSettings) -> None:
        self._backend, self.settings = backend, settings
        self._near = _make(settings)
        self._key: Key | None = None
        self._hits: MutableMapping[tuple[str, str], Hits] = LRUCache(_REMEMBERED_AGENTS)
        self.total = Hits()

    def hits(self, asker: Asker) -> Hits:
        return self._hits.setdefault((asker.namespace, asker.agent), Hits())

    async def get(self, asker: Asker, texts: Sequence[str], model: Model, *, far: bool = True) -> Vectors:
        """Return the cached vectors of some texts; `far` also looks into Redis."""
        hits, distinct = self.hits(asker), dict.fromkeys(texts)
        known = {text: vector for text in distinct if (vector := self._near.get(_near(asker, text, model))) is not None}
        near = len(known)
        missing = [text for text in distinct if text not in known]
        if far and missing and self.settings.redis_ttl_seconds:
            known |= await self._from_redis(asker, missing, model)
        for counted in (hits, self.total):
            counted.process += near
            counted.redis += len(known) - near
            counted.missed += len(distinct) - len(known)
        return known

    async def put(self, asker: Asker, vectors: Vectors, model: Model) -> None:
        for text, vector in vectors.items():
            self._near[_near(asker, text, model)] = vector
        most, lifetime = self.settings.redis_entries, self.settings.redis_ttl_seconds
        if not lifetime or not most:
            return
        key, fields = Keys(asker.namespace).cached_vectors(model.field, asker.agent), list[bytes]()
        for text, vector in list(vectors.items())[-most:]:
            name, lock = self._far(key, text)
            fields += [name, lock.seal(vector) if lock else vector]
        for part in slices(fields, 2 * _AT_ONCE):
            await self._backend.write("rm1_cache_vectors", [key], vectors=part, seconds=lifetime, most=most)

    async def _from_redis(self, asker: Asker, texts: Sequence[str], model: Model) -> Vectors:
        key = Keys(asker.namespace).cached_vectors(model.field, asker.agent)
        places = [self._far(key, text) for text in texts]
        found = await self._backend.read(lambda client: client.hmget(key, [name for name, _ in places]))
        known: Vectors = {}
        for text, value, (_, lock) in zip(texts, found, places, strict=True):
            with suppress(Tampered):
                vector = lock.open(value) if value and lock else value
                if vector and len(vector) == model.vector_bytes:
                    known[text] = self._near[_near(asker, text, model)] = vector
        return known

    def _far(self, key: str, text: str) -> tuple[bytes, Lock | None]:
        """Return a text's field in Redis. With a master key, the field is a keyed hash and the value sealed."""
        masters = self._backend.keyring.masters
        if not masters:
            return bytes.fromhex(digest(text)), None
        if self._key is None:
            self._key = Key.of(masters[0], "cache")
        name = hmac.digest(self._key.value, text.encode(), "sha256")[:16]
        return name, Lock.at(self._key, "cached vector", key, name.hex())


def _near(asker: Asker, text: str, model: Model) -> _Near:
    return model.field, asker.namespace, asker.agent, text


def _make(settings: CacheSettings) -> MutableMapping[_Near, bytes]:
    match settings.policy:
        case "lru":
            return LRUCache(settings.entries)
        case "lfu":
            return LFUCache(settings.entries)
        case "ttl":
            return TTLCache(settings.entries, settings.ttl_seconds)
