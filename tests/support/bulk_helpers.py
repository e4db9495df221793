"""Helpers of the bulk engine's tests: vectors, selections, and stored memories with given vectors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from memory_core.records.ids import new_id
from memory_core.records.vectors import Matrix, to_bytes
from memory_core.store.bulk_messages import Selection
from memory_embedder.bulk.array_module import ArrayModule
from memory_embedder.bulk.engine import BulkEngine
from memory_embedder.bulk.faiss_index import FaissLibrary
from memory_embedder.bulk.mirror import LoadedMemory, Mirror
from support.embedder_fixtures import Team

DIMENSION = 16
PUBLIC = Selection(every=[("scope", ["pub"])])
ENGINE = BulkEngine(ArrayModule(), FaissLibrary(gpus=False))


def unit_vectors(count: int, dimension: int = DIMENSION, seed: int = 0, subjects: int = 40) -> Matrix:
    """Random vectors that cluster around some subjects, like those of texts."""
    chance = np.random.default_rng(seed)
    middles = chance.standard_normal((subjects, dimension), dtype=np.float32)
    rows = middles[chance.integers(0, subjects, count)]
    rows = rows + 0.6 * chance.standard_normal((count, dimension), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def loaded(
    memory_id: str,
    *vectors: Matrix,
    scope: Sequence[str] = ("pub",),
    labels: Mapping[str, Sequence[str]] | None = None,
    expires_at: float = float("inf"),
    occurred_at: float = float("nan"),
    updated_at: float = float("nan"),
) -> LoadedMemory:
    """A memory with one chunk per vector, as read from Redis."""
    pairs = [("scope", token) for token in scope]
    pairs += [(name, value) for name, values in (labels or {}).items() for value in values]
    pieces = [(number, to_bytes(vector)) for number, vector in enumerate(vectors)]
    return LoadedMemory(memory_id, pairs, expires_at, occurred_at, pieces, updated_at=updated_at)


def mirror_of(vectors: Matrix, *, scopes: Sequence[Sequence[str]] | None = None) -> Mirror:
    """A mirror of memories m0, m1, …"""
    mirror = Mirror(vectors.shape[1])
    mirror.put(
        loaded(f"m{number}", vector, scope=scopes[number] if scopes else ("pub",))
        for number, vector in enumerate(vectors)
    )
    return mirror


def seen_by(mirror: Mirror, *tokens: str, now: float | None = None) -> Any:
    """A mask of the rows that these scope tokens may see."""
    return mirror.select(Selection(every=[("scope", tokens)]), time.time() if now is None else now)


class Stored:
    """Stores memories of a team in Redis with given vectors."""

    def __init__(self, team: Team) -> None:
        self._team, self.names = team, team.names

    async def store(self, vector: Matrix, *, scope: Sequence[str] = ("pub",), ttl: int | None = None) -> str:
        """Store one memory. Returns its id."""
        memory_id, model = new_id(), self._team.settings.embedding_model
        stored = {"bytes": to_bytes(vector), "dimension": len(vector), "model": model}
        await self._team.call_store(memory_id, memory_id, scope=scope, ttl=ttl, vector=stored)
        return memory_id
