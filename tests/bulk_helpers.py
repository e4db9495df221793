"""What the tests of the bulk engine share: vectors, selections, and memories stored with vectors made up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from memory_core import functions
from memory_core.bulk import Selection
from memory_core.connection import Client
from memory_core.ids import new_id
from memory_core.keys import Keys, vector_field
from memory_core.names import SEPARATOR
from memory_core.records import content_hash
from memory_core.vectors import Matrix, to_bytes
from memory_embedder.bulk.arrays import Arrays
from memory_embedder.bulk.engine import BulkEngine
from memory_embedder.bulk.index import Faiss
from memory_embedder.bulk.mirror import Loaded, Mirror

DIMENSION = 16
EVERYBODY = Selection(every=[("scope", ["pub"])])
ENGINE = BulkEngine(Arrays(), Faiss(gpus=False))


def unit_vectors(count: int, dimension: int = DIMENSION, seed: int = 0, subjects: int = 40) -> Matrix:
    """Vectors about some subjects, as texts are."""
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
) -> Loaded:
    """A memory of some pieces as it would be read."""
    carried = [("scope", token) for token in scope]
    carried += [(name, value) for name, values in (labels or {}).items() for value in values]
    pieces = [(number, to_bytes(vector)) for number, vector in enumerate(vectors)]
    return Loaded(memory_id, carried, expires_at, occurred_at, pieces, updated_at=updated_at)


def mirror_of(vectors: Matrix, *, scopes: Sequence[Sequence[str]] | None = None) -> Mirror:
    """A mirror of memories m0, m1, …"""
    mirror = Mirror(vectors.shape[1])
    mirror.put(
        loaded(f"m{number}", vector, scope=scopes[number] if scopes else ("pub",))
        for number, vector in enumerate(vectors)
    )
    return mirror


def seen_by(mirror: Mirror, *tokens: str, now: float | None = None) -> Any:
    """The rows that some tokens let see."""
    return mirror.select(Selection(every=[("scope", tokens)]), time.time() if now is None else now)


class Stored:
    """One agent's memories in Redis, stored by the Functions with vectors of the test's choice."""

    def __init__(self, client: Client, namespace: str, owner: str, model: str = "fake") -> None:
        self._client = client
        self.names = Keys(namespace)
        self._owner = owner
        self._model = model

    async def store(self, vector: Matrix, *, scope: Sequence[str] = ("pub",), ttl: int | None = None) -> str:
        """Store one memory and give its id."""
        names, memory_id = self.names, new_id()
        digest = content_hash(memory_id)
        fields = {"content": memory_id, "owner": self._owner, "hash": digest, "type": "context"}
        fields |= {"codec": "text", "scope": SEPARATOR.join(scope)}
        await functions.call(
            self._client,
            "rm1_store",
            [
                *(names.memory(memory_id), names.agent("alice"), names.job_streams, names.audit),
                *(names.seq(self._owner), names.same(self._owner, digest), names.counters, names.idempotency("x", "y")),
                *(names.chores, names.events),
            ],
            id=memory_id,
            memory_prefix=names.memory_prefix,
            owner=self._owner,
            context="",
            fields=[part for pair in fields.items() for part in pair],
            pieces=1,
            ttl=ttl,
            grace=60,
            vector={
                "bytes": to_bytes(vector),
                "dimension": len(vector),
                "field": vector_field(self._model),
                "model": self._model,
            },
            job={"model": self._model, "body": memory_id},
            audit={"who": "alice", "op": "store", "ids": [memory_id]},
        )
        return memory_id
