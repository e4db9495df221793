"""Looks at single records: whether the index covers each, and whether its vector and its pieces are as they must be."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from memory_core.records.keys import Keys
from memory_core.records.memory import SEALED_CODEC
from memory_core.records.model import NO_VECTOR, Model
from memory_core.records.names import SEPARATOR
from memory_core.records.vectors import Matrix, from_bytes
from memory_core.settings.settings import Settings
from memory_core.store import redis_time
from memory_core.store.connection import Client, store_errors
from memory_server.index import queries
from memory_server.index.loader import Ref

AT_ONCE = 256
WAITED_SECONDS = 60.0
"""A memory that is younger may well be without its vector."""
_UNIT = 1e-3


class Problem(StrEnum):
    """What can be wrong with a record."""

    UNINDEXED = "unindexed"
    INVALID = "vectors.invalid"
    OTHER_MODEL = "vectors.model"
    MISSING = "vectors.missing"
    ORPHAN = "orphans"
    PIECES = "pieces"


@dataclass(frozen=True, slots=True)
class Walk:
    """The records of one namespace, slice by slice."""

    client: Client
    keys: Keys
    settings: Settings
    model: Model

    @property
    def fields(self) -> tuple[str, ...]:
        """What is read of each record."""
        return (self.model.field, "model", "codec", "pieces", "updated_at", "expires_at")

    async def slices(self) -> AsyncGenerator[list[str]]:
        """Give the keys of all records, memories first; some perhaps twice."""
        for prefix in (self.keys.memory_prefix, self.keys.chunk_prefix):
            cursor = 0
            while True:
                async with store_errors():
                    cursor, found = await self.client.scan(cursor, match=f"{prefix}*", count=1000)
                names = [name.decode() for name in found]
                for start in range(0, len(names), AT_ONCE):
                    yield names[start : start + AT_ONCE]
                if not cursor:
                    break

    async def problems(self, names: Sequence[str]) -> dict[str, Problem]:
        """Say what is wrong with which of some records; one that is gone has no problem."""
        rows = await self._load(names)
        async with store_errors():
            covered = await queries.indexed(self.client, self.keys, names, self.settings.search_timeout_ms)
        found: dict[str, Problem] = {}
        for name, row in rows.items():
            problem = self._problem_of_vector(row)
            if problem is None and name not in covered and _lives(row):
                problem = Problem.UNINDEXED
            if problem:
                found[name] = problem
        return found | await self._problems_of_pieces(rows)

    async def vectors(self, names: Sequence[str]) -> tuple[list[str], Matrix]:
        """Give the keys of those that have a vector, and the vectors, shape (n, dimension)."""
        dimension = self.model.dimension
        pairs = [(name, row[0]) for name, row in (await self._load(names)).items() if row[0]]
        fitting = [(name, vector) for name, vector in pairs if len(vector) == 4 * dimension]
        matrix = from_bytes(b"".join(vector for _, vector in fitting), dimension)
        return [name for name, _ in fitting], matrix

    async def _load(self, names: Sequence[str]) -> dict[str, list[Any]]:
        pipe = self.client.pipeline(transaction=False)
        for name in names:
            pipe.hmget(name, self.fields)
        async with store_errors():
            rows = await pipe.execute()
        return {name: row for name, row in zip(names, rows, strict=True) if any(value is not None for value in row)}

    def _problem_of_vector(self, row: Sequence[Any]) -> Problem | None:
        vector, model, codec, _, updated, _ = row
        if codec == SEALED_CODEC.encode():
            return None
        if self.model.is_ready(model):
            return None if _is_unit(vector, self.model.dimension) else Problem.INVALID
        if model and NO_VECTOR + self.model.name not in model.decode(errors="replace").split(SEPARATOR):
            return Problem.OTHER_MODEL
        waited = redis_time.now() - float(updated or 0) > WAITED_SECONDS
        return Problem.MISSING if waited else None

    async def _problems_of_pieces(self, rows: dict[str, list[Any]]) -> dict[str, Problem]:
        """Find pieces that belong to no memory, and memories that lack pieces; not those that are being settled."""
        refs = {name: Ref.of_key(self.keys, name) for name in rows}
        long = {ref.memory_id: int(rows[name][3]) for name, ref in refs.items() if not ref.chunk and rows[name][3]}
        pieces = {name: ref for name, ref in refs.items() if ref.chunk}
        if not long and not pieces:
            return {}
        counts = long | await self._counts({ref.memory_id for ref in pieces.values()} - set(long))
        lacking = await self._lacking(long)
        settling = await self._settling()
        orphans = {name: ref for name, ref in pieces.items() if ref.chunk >= counts.get(ref.memory_id, 0)}
        return {
            **{name: Problem.ORPHAN for name, ref in orphans.items() if ref.memory_id not in settling},
            **{self.keys.memory(one): Problem.PIECES for one in lacking if one not in settling},
        }

    async def _counts(self, memory_ids: Iterable[str]) -> dict[str, int]:
        ids, pipe = list(memory_ids), self.client.pipeline(transaction=False)
        for memory_id in ids:
            pipe.hmget(self.keys.memory(memory_id), ["owner", "pieces"])
        async with store_errors():
            rows = await pipe.execute() if ids else []
        return {one: int(pieces or 1) for one, (owner, pieces) in zip(ids, rows, strict=True) if owner is not None}

    async def _lacking(self, long: dict[str, int]) -> list[str]:
        pipe = self.client.pipeline(transaction=False)
        for memory_id, number in long.items():
            pipe.exists(*(self.keys.chunk(memory_id, piece) for piece in range(1, number)))
        async with store_errors():
            there = await pipe.execute() if long else []
        return [one for (one, number), found in zip(long.items(), there, strict=True) if found < number - 1]

    async def _settling(self) -> set[str]:
        async with store_errors():
            chores = await self.client.zrange(self.keys.chores, 0, -1)
        return {chore.decode().rpartition(":")[0] for chore in chores}


def _lives(row: Sequence[Any]) -> bool:
    expires = row[-1]
    return expires is None or float(expires) > redis_time.now()


def _is_unit(vector: bytes | None, dimension: int) -> bool:
    if vector is None or len(vector) != 4 * dimension:
        return False
    length = float(np.linalg.norm(from_bytes(vector, dimension)[0].astype(np.float64)))
    return abs(length - 1) < _UNIT  # false for NaN too
