"""The vectors of a namespace in memory, with the labels that decide who may read them.

Rows are only added. A changed memory gets new rows and its old rows are marked dead, so a running search keeps its
data. When many rows are dead, the live rows are copied into a new mirror.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memory_core.records.vectors import Matrix, to_float32
from memory_core.store.bulk_messages import Clause, Selection

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
_MIN_ROWS = 256
_MAX_DEAD = 0.25
_NORM_TOLERANCE = 1e-2
_BYTES_PER_ID = 420
"""Measured, without the arrays: an id, its place in two tables, and its labels' entries."""
_BY_ID = "i:"


@dataclass(frozen=True, slots=True)
class LoadedMemory:
    """A memory as read from Redis: its labels (field, value), times as epoch seconds, and the vectors of its chunks.

    If `whole` is false, the memory has more chunks, and their rows stay.
    """

    memory_id: str
    labels: Sequence[tuple[str, str]] = ()
    expires_at: float = 0.0
    occurred_at: float = float("nan")
    pieces: Sequence[tuple[int, bytes]] = ()
    whole: bool = True
    updated_at: float = float("nan")


@dataclass(slots=True)
class _Table:
    """The columns, with spare rows."""

    vectors: Matrix
    alive: Mask
    expires: NDArray[np.float64]
    occurred: NDArray[np.float64]
    updated: NDArray[np.float64]
    piece: NDArray[np.int32]

    @classmethod
    def of(cls, rows: int, dimension: int) -> _Table:
        return cls(
            np.empty((rows, dimension), dtype=np.float32),
            np.zeros(rows, dtype=np.bool_),
            np.empty(rows, dtype=np.float64),
            np.empty(rows, dtype=np.float64),
            np.empty(rows, dtype=np.float64),
            np.empty(rows, dtype=np.int32),
        )

    def columns(self) -> tuple[NDArray[np.generic], ...]:
        return (self.vectors, self.alive, self.expires, self.occurred, self.updated, self.piece)

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns())


@dataclass(slots=True)
class Mirror:
    """The rows of one namespace. `changes` counts added and removed rows, `refused` counts invalid vectors."""

    dimension: int
    count: int = 0
    dead: int = 0
    changes: int = 0
    refused: int = 0
    ids: list[str] = field(default_factory=list[str])
    _rows_of: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    _postings: dict[tuple[str, str], array[int]] = field(default_factory=dict[tuple[str, str], "array[int]"])
    _table: _Table = field(init=False)

    def __post_init__(self) -> None:
        self._table = _Table.of(_MIN_ROWS, self.dimension)

    @property
    def living(self) -> int:
        """Number of rows that are not dead."""
        return self.count - self.dead

    @property
    def nbytes(self) -> int:
        """Size in bytes. The part in Python's own tables is an estimate."""
        return self._table.nbytes + _BYTES_PER_ID * self.count

    @property
    def vectors(self) -> Matrix:
        """All rows, also the dead ones, shape (count, dimension)."""
        return self._table.vectors[: self.count]

    @property
    def pieces(self) -> NDArray[np.int32]:
        """The chunk number of each row."""
        return self._table.piece[: self.count]

    @property
    def needs_compaction(self) -> bool:
        """Whether enough rows are dead to copy the others."""
        return self.dead > max(_MIN_ROWS, _MAX_DEAD * self.count)

    def put(self, loaded: Iterable[LoadedMemory]) -> None:
        """Replace memories with their current state. A memory without pieces is deleted or has no vector yet."""
        found = list(loaded)
        data = b"".join(to_float32(vector, self.dimension) for one in found for _, vector in self._fitting(one))
        fresh = np.frombuffer(data, dtype="<f4").reshape(-1, self.dimension)
        with np.errstate(invalid="ignore", over="ignore"):
            usable = np.abs(np.einsum("ij,ij->i", fresh, fresh) - 1) < _NORM_TOLERANCE
        self._reserve(len(fresh))
        at = 0
        for one in found:
            self._bury_replaced(one)
            for piece, _ in self._fitting(one):
                if usable[at]:
                    self._append(one, piece, fresh[at])
                else:
                    self.refused += 1
                at += 1
            self.refused += len(one.pieces) - sum(1 for _ in self._fitting(one))

    def expire(self, now: float) -> None:
        """Mark expired rows as dead. `select` ignores them in any case."""
        table = self._table
        for row in np.flatnonzero(table.alive[: self.count] & (table.expires[: self.count] <= now)):
            self._bury(int(row))

    def select(self, selection: Selection, now: float) -> Mask:
        """Mark the rows that a selection permits and that have not expired, shape (count,)."""
        table, count = self._table, self.count
        mask = table.alive[:count] & (table.expires[:count] > now)
        for clause in selection.every:
            mask &= self._any_of(clause)
        for clause in selection.none:
            mask &= ~self._any_of(clause)
        for writer, since in selection.mistrusted:
            mask &= ~self._any_of(("writer", [writer])) | (table.updated[:count] < since)
        if selection.since is not None:
            mask &= table.occurred[:count] >= selection.since
        if selection.until is not None:
            mask &= table.occurred[:count] <= selection.until
        return mask

    def compacted(self) -> Mirror:
        """Copy the live rows into a new mirror."""
        kept = np.flatnonzero(self._table.alive[: self.count])
        position = np.full(self.count, -1, dtype=np.int64)
        position[kept] = np.arange(len(kept))
        copy = Mirror(self.dimension, count=len(kept), changes=self.changes, refused=self.refused)
        copy._table = _Table.of(max(_MIN_ROWS, len(kept) * 5 // 4), self.dimension)
        for target, source in zip(copy._table.columns(), self._table.columns(), strict=True):
            target[: len(kept)] = source[kept]
        copy.ids = [self.ids[row] for row in kept]
        for row, memory_id in enumerate(copy.ids):
            copy._rows_of.setdefault(memory_id, []).append(row)
        for label, posting in self._postings.items():
            moved = position[np.frombuffer(posting, dtype=np.int32)]
            if len(moved := moved[moved >= 0]):
                copy._postings[label] = array("i", moved.astype(np.int32).tobytes())
        return copy

    def _fitting(self, one: LoadedMemory) -> Iterable[tuple[int, bytes]]:
        return (
            (piece, vector) for piece, vector in one.pieces if len(vector) in {2 * self.dimension, 4 * self.dimension}
        )

    def _any_of(self, clause: Clause) -> Mask:
        """Mark the rows that have one of the values."""
        mask = np.zeros(self.count, dtype=np.bool_)
        name, values = clause
        found: list[Rows | NDArray[np.int32]] = []
        for value in values:
            if name == "id" or (name == "scope" and value.startswith(_BY_ID)):
                rows = self._rows_of.get(value if name == "id" else value[len(_BY_ID) :])
                if rows:
                    found.append(np.array(rows, dtype=np.int32))
            elif posting := self._postings.get((name, value)):
                found.append(np.frombuffer(posting, dtype=np.int32).copy())
        if found:
            mask[np.concatenate(found)] = True
        return mask

    def _append(self, one: LoadedMemory, piece: int, vector: Matrix) -> None:
        row, table = self.count, self._table
        table.vectors[row] = vector
        table.expires[row], table.occurred[row], table.piece[row] = one.expires_at, one.occurred_at, piece
        table.updated[row], table.alive[row] = one.updated_at, True
        self.ids.append(one.memory_id)
        self._rows_of.setdefault(one.memory_id, []).append(row)
        for label in one.labels:
            if label == ("scope", _BY_ID + one.memory_id):
                continue
            posting = self._postings.get(label)
            if posting is None:
                posting = self._postings[label] = array("i")
            posting.append(row)
        self.count += 1
        self.changes += 1

    def _bury_replaced(self, one: LoadedMemory) -> None:
        replaced = {piece for piece, _ in one.pieces}
        for row in list(self._rows_of.get(one.memory_id, ())):
            if one.whole or self._table.piece[row] in replaced:
                self._bury(row)

    def _bury(self, row: int) -> None:
        memory_id = self.ids[row]
        self._table.alive[row] = False
        self.dead += 1
        self.changes += 1
        rows = self._rows_of[memory_id]
        rows.remove(row)
        if not rows:
            del self._rows_of[memory_id]

    def _reserve(self, more: int) -> None:
        """Make room for more rows. Running searches keep the old columns."""
        if self.count + more <= len(self._table.alive):
            return
        grown = _Table.of(max(self.count + more, len(self._table.alive) * 3 // 2), self.dimension)
        for target, source in zip(grown.columns(), self._table.columns(), strict=True):
            target[: self.count] = source[: self.count]
        self._table = grown
