"""Remembers vectors, so that a text seen before costs no inference: in this process, then in Redis.

Each agent has its own: a hit on another's text would tell that somebody holds it.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cachetools import LFUCache, LRUCache, TTLCache

from memory_core.keys import Keys, digest
from memory_core.settings import CacheSettings
from memory_server.backend import Backend

Vectors = dict[str, bytes]
_REMEMBERED_AGENTS = 10_000


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
    model: str
    settings: CacheSettings
    _near: MutableMapping[tuple[str, str, str], bytes] = field(init=False)
    _hits: MutableMapping[tuple[str, str], Hits] = field(init=False)

    def __post_init__(self) -> None:
        self._near = _make(self.settings)
        self._hits = LRUCache(_REMEMBERED_AGENTS)

    def hits(self, asker: Asker) -> Hits:
        """Count the hits of one agent since this process started."""
        return self._hits.setdefault((asker.namespace, asker.agent), Hits())

    async def get(self, asker: Asker, texts: Sequence[str], *, far: bool = True) -> Vectors:
        """Give what is known of some texts; with `far`, looking into Redis for what this process does not know."""
        hits, wanted = self.hits(asker), dict.fromkeys(texts)
        known = {text: vector for text in wanted if (vector := self._near.get(_near(asker, text))) is not None}
        hits.process += len(known)
        missing = [text for text in wanted if text not in known]
        if far and missing and self.settings.redis_ttl_seconds:
            found = await self._from_redis(asker, missing)
            hits.redis += len(found)
            known |= found
        hits.missed += len(wanted) - len(known)
        return known

    async def put(self, asker: Asker, vectors: Vectors) -> None:
        """Remember vectors in both tiers."""
        for text, vector in vectors.items():
            self._near[_near(asker, text)] = vector
        lifetime = self.settings.redis_ttl_seconds
        if not lifetime:
            return
        pipe = (await self.backend.client()).pipeline(transaction=False)
        for text, vector in vectors.items():
            pipe.set(self._far(asker, text), vector, ex=lifetime)
        await self.backend.read(lambda _: pipe.execute())

    async def _from_redis(self, asker: Asker, texts: Sequence[str]) -> Vectors:
        names = [self._far(asker, text) for text in texts]
        found = await self.backend.read(lambda client: client.mget(names))
        known = {text: vector for text, vector in zip(texts, found, strict=True) if vector}
        for text, vector in known.items():
            self._near[_near(asker, text)] = vector
        return known

    def _far(self, asker: Asker, text: str) -> str:
        return Keys(asker.namespace).cached_vector(self.model, asker.agent, digest(text))


def _near(asker: Asker, text: str) -> tuple[str, str, str]:
    return asker.namespace, asker.agent, text


def _make(settings: CacheSettings) -> MutableMapping[tuple[str, str, str], bytes]:
    match settings.policy:
        case "lru":
            return LRUCache(settings.entries)
        case "lfu":
            return LFUCache(settings.entries)
        case "ttl":
            return TTLCache(settings.entries, settings.ttl_seconds)
