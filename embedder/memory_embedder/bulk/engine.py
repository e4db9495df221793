"""Computes the answers to bulk requests from a snapshot of a mirror. Runs in a thread, until the deadline."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from memory_core.records.vectors import Matrix
from memory_core.store.bulk_messages import Clusters, ClustersFound, Duplicates, DuplicatesFound, Nearest, NearestFound
from memory_embedder.bulk.array_module import Array, ArrayModule, DeviceRows
from memory_embedder.bulk.faiss_index import FaissIndex, FaissLibrary
from memory_embedder.bulk.mirror import Mask
from memory_embedder.bulk.numerics import Neighbours, k_means, nearest, similar_pairs

_MIN_SHARE = 0.2
"""Below this share of permitted rows an index finds too few. Comparing with those rows alone is cheap."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The rows at the time of a request, and a mask of those it may see."""

    vectors: Matrix
    ids: list[str]
    pieces: Any
    chosen: Mask
    device_rows: DeviceRows


class BulkEngine:
    """Computes with one array module and one FAISS library."""

    def __init__(self, arrays: ArrayModule, faiss: FaissLibrary) -> None:
        self.arrays = arrays
        self.faiss = faiss

    def nearest(
        self, seen: Snapshot, request: Nearest, queries: Matrix, index: FaissIndex | None, deadline: float
    ) -> NearestFound:
        """Find the chunks nearest to each query, with an index if there is one that fits.

        Raises:
            DeadlinePassed: the request took too long.
        """
        fits = index is not None and not request.exact and seen.chosen[: index.covered].mean() >= _MIN_SHARE
        if index is not None and fits:
            found = self._search_index(seen, request.k, queries, index, deadline)
        else:
            found = self._compare(seen, queries, seen.chosen, request.k, deadline)
        rows, places = _distinct(found.rows)
        return NearestFound(
            ids=[seen.ids[row] for row in rows],
            pieces=seen.pieces[rows].tolist(),
            k=request.k,
            places=places.astype("<i4").tobytes(),
            scores=found.scores.astype("<f4").tobytes(),
            exact=not fits,
        )

    def duplicates(self, seen: Snapshot, request: Duplicates, deadline: float) -> DuplicatesFound:
        """Find the pairs of chunks whose vectors are nearly the same.

        Raises:
            DeadlinePassed: the request took too long.
        """
        rows = np.flatnonzero(seen.chosen)
        names: dict[str, int] = {}
        same = np.array([names.setdefault(seen.ids[row], len(names)) for row in rows], dtype=np.int64)
        found = similar_pairs(self.arrays, self._rows(seen, rows), request.least, request.most, same, deadline=deadline)
        numbers, places = _distinct(rows[np.stack([found.left, found.right], axis=1)])
        return DuplicatesFound(
            ids=[seen.ids[row] for row in numbers],
            pieces=seen.pieces[numbers].tolist(),
            pairs=places.astype("<i4").tobytes(),
            scores=found.scores.astype("<f4").tobytes(),
            total=found.total,
        )

    def clusters(self, seen: Snapshot, request: Clusters, deadline: float) -> ClustersFound:
        """Group the selected rows by meaning.

        Raises:
            DeadlinePassed: the request took too long.
        """
        rows = np.flatnonzero(seen.chosen)
        if not len(rows):
            return ClustersFound(ids=[], pieces=[], sizes=[], closeness=[], shown=[])
        found = k_means(self.arrays, self._rows(seen, rows), min(request.count, len(rows)), deadline=deadline)
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

    def _search_index(self, seen: Snapshot, k: int, queries: Matrix, index: FaissIndex, deadline: float) -> Neighbours:
        """Search the index, and compare with the rows that are newer than it."""
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
        vectors = seen.device_rows.sync(seen.vectors)
        return nearest(arrays, arrays.to_device(queries), vectors, k, chosen, deadline=deadline)

    def _rows(self, seen: Snapshot, rows: Any) -> Array:
        vectors = seen.device_rows.sync(seen.vectors)
        return vectors if len(rows) == len(vectors) else vectors[self.arrays.to_device(rows)]


def _distinct(rows: Any) -> tuple[Any, Any]:
    """The distinct rows, and for each row its position among them (in the shape of `rows`). -1 stays -1."""
    distinct, places = np.unique(rows, return_inverse=True)
    places = places.reshape(rows.shape)
    if len(distinct) and distinct[0] < 0:
        return distinct[1:], places - 1
    return distinct, places
