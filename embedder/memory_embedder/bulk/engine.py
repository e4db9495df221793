"""What a bulk request does to a mirror: pure computing on a snapshot, in a thread, until the deadline."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from memory_core.bulk import (
    Clusters,
    ClustersFound,
    Duplicates,
    DuplicatesFound,
    Nearest,
    NearestFound,
)
from memory_core.vectors import Matrix
from memory_embedder.bulk.array_module import Array, Arrays, Resident
from memory_embedder.bulk.faiss_index import Approximate, Faiss
from memory_embedder.bulk.mirror import Mask
from memory_embedder.bulk.numerics import Neighbours, group, nearest, pairs

_LEAST_SHARE = 0.2
"""An index finds too little where fewer of its rows are permitted; comparing with those alone is cheap there."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Rows as they were when a request came, and those it may see."""

    vectors: Matrix
    ids: list[str]
    pieces: Any
    chosen: Mask
    resident: Resident


class BulkEngine:
    """Computes with one array module and one FAISS."""

    def __init__(self, arrays: Arrays, faiss: Faiss) -> None:
        self.arrays = arrays
        self.faiss = faiss

    def nearest(
        self, seen: Snapshot, request: Nearest, queries: Matrix, index: Approximate | None, deadline: float
    ) -> NearestFound:
        """Find the pieces nearest to each query; by an index where there is one that fits.

        Raises:
            DeadlinePassed: nobody waits any more.
        """
        fits = index is not None and not request.exact and seen.chosen[: index.covered].mean() >= _LEAST_SHARE
        if index is not None and fits:
            found = self._by_index(seen, request.k, queries, index, deadline)
        else:
            found = self._compare(seen, queries, seen.chosen, request.k, deadline)
        rows, places = _numbered(found.rows)
        return NearestFound(
            ids=[seen.ids[row] for row in rows],
            pieces=seen.pieces[rows].tolist(),
            k=request.k,
            places=places.astype("<i4").tobytes(),
            scores=found.scores.astype("<f4").tobytes(),
            exact=not fits,
        )

    def duplicates(self, seen: Snapshot, request: Duplicates, deadline: float) -> DuplicatesFound:
        """Find the pairs that say nearly the same.

        Raises:
            DeadlinePassed: nobody waits any more.
        """
        rows = np.flatnonzero(seen.chosen)
        names: dict[str, int] = {}
        same = np.array([names.setdefault(seen.ids[row], len(names)) for row in rows], dtype=np.int64)
        found = pairs(self.arrays, self._taken(seen, rows), request.least, request.most, same, deadline=deadline)
        numbers, places = _numbered(rows[np.stack([found.left, found.right], axis=1)])
        return DuplicatesFound(
            ids=[seen.ids[row] for row in numbers],
            pieces=seen.pieces[numbers].tolist(),
            pairs=places.astype("<i4").tobytes(),
            scores=found.scores.astype("<f4").tobytes(),
            total=found.total,
        )

    def clusters(self, seen: Snapshot, request: Clusters, deadline: float) -> ClustersFound:
        """Part the selection by meaning.

        Raises:
            DeadlinePassed: nobody waits any more.
        """
        rows = np.flatnonzero(seen.chosen)
        if not len(rows):
            return ClustersFound(ids=[], pieces=[], sizes=[], closeness=[], shown=[])
        found = group(self.arrays, self._taken(seen, rows), min(request.count, len(rows)), deadline=deadline)
        numbers = list(np.argsort(-np.bincount(found.cluster), kind="stable"))
        members = [np.flatnonzero(found.cluster == number) for number in numbers]
        members = [inside[np.argsort(-found.closeness[inside], kind="stable")] for inside in members if len(inside)]
        shown = [rows[inside[: request.show]] for inside in members]
        flat = np.concatenate(shown)
        starts = np.cumsum([0, *map(len, shown)])
        return ClustersFound(
            ids=[seen.ids[row] for row in flat],
            pieces=seen.pieces[flat].tolist(),
            sizes=[len({seen.ids[rows[one]] for one in inside}) for inside in members],
            closeness=[round(float(found.closeness[inside].mean()), 4) for inside in members],
            shown=[list(range(start, end)) for start, end in pairwise(starts)],
        )

    def _by_index(self, seen: Snapshot, k: int, queries: Matrix, index: Approximate, deadline: float) -> Neighbours:
        """Ask the index, and compare with the rows that came after it was built."""
        found = index.search(self.faiss, queries, k, seen.chosen)
        later = seen.chosen.copy()
        later[: index.covered] = False
        if not later.any():
            return found
        rest = self._compare(seen, queries, later, k, deadline)
        rows, scores = np.concatenate([found.rows, rest.rows], 1), np.concatenate([found.scores, rest.scores], 1)
        scores[rows < 0] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Neighbours(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1))

    def _compare(self, seen: Snapshot, queries: Matrix, chosen: Mask, k: int, deadline: float) -> Neighbours:
        arrays = self.arrays
        vectors = seen.resident.upto(seen.vectors)
        return nearest(arrays, arrays.to_device(queries), vectors, k, chosen, deadline=deadline)

    def _taken(self, seen: Snapshot, rows: Any) -> Array:
        vectors = seen.resident.upto(seen.vectors)
        return vectors if len(rows) == len(vectors) else vectors[self.arrays.to_device(rows)]


def _numbered(rows: Any) -> tuple[Any, Any]:
    """Give the distinct rows and, in the shape of `rows`, the place of each among them; -1 stays -1."""
    distinct, places = np.unique(rows, return_inverse=True)
    places = places.reshape(rows.shape)
    if len(distinct) and distinct[0] < 0:
        return distinct[1:], places - 1
    return distinct, places
