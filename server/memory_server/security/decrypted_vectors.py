"""Caches decrypted vectors of sensitive memories, which Redis cannot search. Overwrites them when it drops them."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from memory_core.records.vectors import Matrix


class Which(NamedTuple):
    """Identifies a vector: a piece of a sensitive memory, the hash of its content, and the model."""

    namespace: str
    owner: str
    memory_id: str
    piece: int
    content_hash: str
    model: str


class OpenVectors:
    """The most recently used decrypted vectors. Dropped ones are overwritten with zeros."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held: OrderedDict[Which, Matrix] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def owners(self) -> set[tuple[str, str]]:
        """The namespaces and owners of the cached vectors."""
        return {(which.namespace, which.owner) for which in self._held}

    def copy(self, which: Which, row: Matrix) -> bool:
        """Copy a vector into a row, shape (dimension,); False if it is not cached."""
        vector = self._held.get(which)
        if vector is None:
            return False
        self._held.move_to_end(which)
        row[:] = vector
        return True

    def put(self, which: Which, vector: Matrix) -> None:
        """Cache a copy; the least recently used vectors make room."""
        self._drop(which)
        if vector.nbytes > self._most:
            return
        while self.bytes + vector.nbytes > self._most:
            self._drop(next(iter(self._held)))
        self._held[which] = vector.copy()
        self.bytes += vector.nbytes

    def forget(self, namespace: str, owner: str) -> None:
        """Drop all vectors of an owner."""
        for which in [which for which in self._held if which[:2] == (namespace, owner)]:
            self._drop(which)

    def clear(self) -> None:
        """Drop all vectors."""
        while self._held:
            self._drop(next(iter(self._held)))

    def _drop(self, which: Which) -> None:
        vector = self._held.pop(which, None)
        if vector is not None:
            self.bytes -= vector.nbytes
            vector.fill(0)
