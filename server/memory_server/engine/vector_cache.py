"""Caches vectors in this process and in Redis, so that a known text costs no inference.

Each agent has its own cache: a hit on another agent's text would reveal that the text is stored.
"""

from __future__ import annotations

import hmac
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cachetools import LFUCache, LRUCache, TTLCache

from memory_core.crypto.sealing import Key, Lock
from memory_core.errors import Tampered
from memory_core.records.keys import Keys, digest
from memory_core.records.model import Model
from memory_core.settings.settings import CacheSettings
from memory_server.engine.backend import Backend

Vectors = dict[str, bytes]
_REMEMBERED_AGENTS = 10_000
_Near = tuple[str, str, str, str]


class Asker(Protocol):
    """Whose texts these are: a caller or a principal."""

    @property
    def namespace(self) -> str:
        """The namespace it acts in."""
        ...

    @property
    def agent(self) -> str:
        """Its name."""
        ...


@dataclass(slots=True)
class Hits:
    """How often each tier had what an agent asked for."""

    process: int = 0
    redis: int = 0
    missed: int = 0


@dataclass(slots=True)
class VectorCache:
    """Vectors by model, agent and text, as bytes."""

    backend: Backend
    settings: CacheSettings
    _near: MutableMapping[_Near, bytes] = field(init=False)
    _key: Key | None = field(init=False, default=None)
    _hits: MutableMapping[tuple[str, str], Hits] = field(init=False)
    total: Hits = field(init=False, default_factory=Hits)
    """Of all agents."""

    def __post_init__(self) -> None:
        self._near = _make(self.settings)
        self._hits = LRUCache(_REMEMBERED_AGENTS)

    def hits(self, asker: Asker) -> Hits:
        """Count the hits of one agent since this process started."""
        return self._hits.setdefault((asker.namespace, asker.agent), Hits())

    async def get(self, asker: Asker, texts: Sequence[str], model: Model, *, far: bool = True) -> Vectors:
        """Give what is known of some texts; with `far`, looking into Redis for what this process does not know."""
        hits, wanted = self.hits(asker), dict.fromkeys(texts)
        known = {text: vector for text in wanted if (vector := self._near.get(_near(asker, text, model))) is not None}
        near = len(known)
        missing = [text for text in wanted if text not in known]
        if far and missing and self.settings.redis_ttl_seconds:
            found = await self._from_redis(asker, missing, model)
            known |= found
        for counted in (hits, self.total):
            counted.process += near
            counted.redis += len(known) - near
            counted.missed += len(wanted) - len(known)
        return known

    async def put(self, asker: Asker, vectors: Vectors, model: Model) -> None:
        """Remember vectors in both tiers."""
        for text, vector in vectors.items():
            self._near[_near(asker, text, model)] = vector
        lifetime = self.settings.redis_ttl_seconds
        if not lifetime:
            return
        pipe = (await self.backend.client()).pipeline(transaction=False)
        for text, vector in vectors.items():
            name, lock = self._far(asker, text, model)
            pipe.set(name, lock.seal(vector) if lock else vector, ex=lifetime)
        await self.backend.read(lambda _: pipe.execute())

    async def _from_redis(self, asker: Asker, texts: Sequence[str], model: Model) -> Vectors:
        places = [self._far(asker, text, model) for text in texts]
        found = await self.backend.read(lambda client: client.mget([name for name, _ in places]))
        known = {
            text: vector
            for text, value, (_, lock) in zip(texts, found, places, strict=True)
            if value and (vector := _opened(value, lock))
        }
        for text, vector in known.items():
            self._near[_near(asker, text, model)] = vector
        return known

    def _far(self, asker: Asker, text: str, model: Model) -> tuple[str, Lock | None]:
        """Name the key of a text in Redis. With a master key it tells nothing of the text, and its value is sealed."""
        keys, masters = Keys(asker.namespace), self.backend.keyring.masters
        if not masters:
            return keys.cached_vector(model.name, asker.agent, digest(text)), None
        if self._key is None:
            self._key = Key.of(masters[0], "cache")
        name = hmac.digest(self._key.value, text.encode(), "sha256").hex()[:32]
        place = keys.cached_vector(model.name, asker.agent, name)
        return place, Lock.at(self._key, "cached vector", place)


def _opened(value: bytes, lock: Lock | None) -> bytes | None:
    """Give a cached vector; one that was altered is none."""
    try:
        return lock.open(value) if lock else value
    except Tampered:
        return None


def _near(asker: Asker, text: str, model: Model) -> _Near:
    return model.name, asker.namespace, asker.agent, text


def _make(settings: CacheSettings) -> MutableMapping[_Near, bytes]:
    match settings.policy:
        case "lru":
            return LRUCache(settings.entries)
        case "lfu":
            return LFUCache(settings.entries)
        case "ttl":
            return TTLCache(settings.entries, settings.ttl_seconds)
