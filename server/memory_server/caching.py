"""Remembers vectors, so that a text seen before costs no inference: in this process, then in Redis."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field

from cachetools import LFUCache, LRUCache, TTLCache

from memory_core.keys import Keys, digest
from memory_core.settings import CacheSettings
from memory_server.backend import Backend

Vectors = dict[str, bytes]


@dataclass(slots=True)
class Hits:
    """How often each tier had what was asked for."""

    process: int = 0
    redis: int = 0
    missed: int = 0


@dataclass(slots=True)
class VectorCache:
    """Vectors by model and text, as bytes. Redis's tier belongs to the namespace, the process's too."""

    backend: Backend
    model: str
    settings: CacheSettings
    hits: Hits = field(default_factory=Hits)
    _near: MutableMapping[tuple[str, str], bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._near = _make(self.settings)

    async def get(self, namespace: str, texts: Sequence[str]) -> Vectors:
        """Give what is known of some texts, looking into Redis for what this process does not know."""
        known = {text: vector for text in texts if (vector := self._near.get((namespace, text))) is not None}
        self.hits.process += len(known)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing and self.settings.redis_ttl_seconds:
            known |= await self._from_redis(namespace, missing)
        self.hits.missed += len(set(texts) - set(known))
        return known

    async def put(self, namespace: str, vectors: Vectors) -> None:
        """Remember vectors in both tiers."""
        for text, vector in vectors.items():
            self._near[namespace, text] = vector
        lifetime = self.settings.redis_ttl_seconds
        if not lifetime:
            return
        pipe = (await self.backend.client()).pipeline(transaction=False)
        for text, vector in vectors.items():
            pipe.set(self._key(namespace, text), vector, ex=lifetime)
        await self.backend.read(lambda _: pipe.execute())

    async def _from_redis(self, namespace: str, texts: Sequence[str]) -> Vectors:
        names = [self._key(namespace, text) for text in texts]
        found = await self.backend.read(lambda client: client.mget(names))
        known = {text: vector for text, vector in zip(texts, found, strict=True) if vector}
        self.hits.redis += len(known)
        for text, vector in known.items():
            self._near[namespace, text] = vector
        return known

    def _key(self, namespace: str, text: str) -> str:
        return Keys(namespace).cached_vector(self.model, digest(text))


def _make(settings: CacheSettings) -> MutableMapping[tuple[str, str], bytes]:
    match settings.policy:
        case "lru":
            return LRUCache(settings.entries)
        case "lfu":
            return LFUCache(settings.entries)
        case "ttl":
            return TTLCache(settings.entries, settings.ttl_seconds)
