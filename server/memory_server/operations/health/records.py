"""Checks single records: indexed, with a valid vector and all chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.memory import SEALED_CODEC
from memory_core.records.model import NO_VECTOR, Model
from memory_core.records.names import SEPARATOR
from memory_core.records.vectors import Matrix, from_bytes, from_stored, to_float32
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.slices import slices
from memory_core.store.connection import store_errors
from memory_server.index import queries
from memory_server.index.loader import Ref

BATCH = 256
VECTOR_SECONDS = 60.0
"""A younger memory may still wait for its vector."""
_UNIT_TOLERANCE = 1e-3


class RecordProblem(StrEnum):
    UNINDEXED = "unindexed"
    INVALID = "vectors.invalid"
    OTHER_MODEL = "vectors.model"
    MISSING = "vectors.missing"
    FAILED = "vectors.failed"
    ORPHAN = "orphans"
    PIECES = "pieces"


@dataclass(frozen=True, slots=True)
class RecordScan:
    """Reads the records of one namespace in batches."""

    client: Client
    keys: Keys
    settings: Settings
    model: Model

    async def batches(self) -> AsyncGenerator[list[str]]:
        """Yield the keys of all records, memories first. A key may appear twice."""
        for prefix in (self.keys.memory_prefix, self.keys.chunk_prefix):
            cursor = 0
            while True:
                async with store_errors():
                    cursor, found = await self.client.scan(cursor, match=f"{prefix}*", count=1000)
                for names in slices(found, BATCH):
                    yield [name.decode() for name in names]
                if not cursor:
                    break

    async def problems(self, names: Sequence[str]) -> dict[str, RecordProblem]:
        """Return the problems of some records. A deleted record has none."""
        rows = await self._load(names)
        async with store_errors():
            indexed = await queries.indexed(self.client, self.keys, names, self.settings.search_timeout_ms)
        found: dict[str, RecordProblem] = {}
        for name, row in rows.items():
            problem = self._vector_problem(row)
            if problem is None and name not in indexed and _is_live(row):
                problem = RecordProblem.UNINDEXED
            if problem:
                found[name] = problem
        return found | await self._chunk_problems(rows)

    async def vectors(self, names: Sequence[str]) -> tuple[list[str], Matrix]:
        """Return the keys of records that have a vector, and the vectors, shape (n, dimension)."""
        dimension = self.model.dimension
        pairs = [(name, row[0]) for name, row in (await self._load(names)).items() if row[0]]
        fitting = [(name, vector) for name, vector in pairs if len(vector) == self.model.vector_bytes]
        matrix = from_bytes(b"".join(to_float32(vector, dimension) for _, vector in fitting), dimension)
        return [name for name, _ in fitting], matrix

    async def _load(self, names: Sequence[str]) -> dict[str, list[Any]]:
        pipe = self.client.pipeline(transaction=False)
        for name in names:
            pipe.hmget(name, [self.model.field, "model", "codec", "pieces", "updated_at", "expires_at"])
        async with store_errors():
            rows = await pipe.execute()
        return {name: row for name, row in zip(names, rows, strict=True) if any(value is not None for value in row)}

    def _vector_problem(self, row: Sequence[Any]) -> RecordProblem | None:
        vector, model, codec, _, updated, _ = row
        if codec == SEALED_CODEC.encode():
            return None
        if self.model.is_ready(model):
            return None if _is_unit(vector, self.model) else RecordProblem.INVALID
        if self.model.has_failed(model):
            return RecordProblem.FAILED
        if model and NO_VECTOR + self.model.label not in model.decode(errors="replace").split(SEPARATOR):
            return RecordProblem.OTHER_MODEL
        waited = redis_time.now() - float(updated or 0) > VECTOR_SECONDS
        return RecordProblem.MISSING if waited else None

    async def _chunk_problems(self, rows: dict[str, list[Any]]) -> dict[str, RecordProblem]:
        """Return chunks without a memory and memories without chunks, except those that a server is still updating."""
        refs = {name: Ref.of_key(self.keys, name) for name in rows}
        long = {ref.memory_id: int(rows[name][3]) for name, ref in refs.items() if not ref.chunk and rows[name][3]}
        pieces = {name: ref for name, ref in refs.items() if ref.chunk}
        if not long and not pieces:
            return {}
        counts = long | await self._chunk_counts({ref.memory_id for ref in pieces.values()} - set(long))
        incomplete = await self._incomplete(long)
        async with store_errors():
            chores = await self.client.zrange(self.keys.chores, 0, -1)
        pending = {chore.decode().rpartition(":")[0] for chore in chores}
        orphans = {name: ref for name, ref in pieces.items() if ref.chunk >= counts.get(ref.memory_id, 0)}
        return {
            **{name: RecordProblem.ORPHAN for name, ref in orphans.items() if ref.memory_id not in pending},
            **{self.keys.memory(one): RecordProblem.PIECES for one in incomplete if one not in pending},
        }

    async def _chunk_counts(self, memory_ids: Iterable[str]) -> dict[str, int]:
        ids, pipe = list(memory_ids), self.client.pipeline(transaction=False)
        for memory_id in ids:
            pipe.hmget(self.keys.memory(memory_id), ["owner", "pieces"])
        async with store_errors():
            rows = await pipe.execute() if ids else []
        return {one: int(pieces or 1) for one, (owner, pieces) in zip(ids, rows, strict=True) if owner is not None}

    async def _incomplete(self, long: dict[str, int]) -> list[str]:
        pipe = self.client.pipeline(transaction=False)
        for memory_id, number in long.items():
            pipe.exists(*(self.keys.chunk(memory_id, piece) for piece in range(1, number)))
        async with store_errors():
            there = await pipe.execute() if long else []
        return [one for (one, number), found in zip(long.items(), there, strict=True) if found < number - 1]


def _is_live(row: Sequence[Any]) -> bool:
    expires = row[-1]
    return expires is None or float(expires) > redis_time.now()


def _is_unit(vector: bytes | None, model: Model) -> bool:
    if vector is None or len(vector) != model.vector_bytes:
        return False
    length = float(np.linalg.norm(from_stored(vector, model.dimension).astype(np.float64)))
    return abs(length - 1) < _UNIT_TOLERANCE  # false for NaN too
