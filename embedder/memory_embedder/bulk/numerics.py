"""Exact comparisons of vectors with vectors, with NumPy or CuPy.

All rows have unit length, so a product is a cosine. Rows are processed in blocks. Of a block only those scores are
kept that beat the worst score kept so far, so sorting costs little compared with the products.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from memory_embedder.bulk.array_module import Array, ArrayModule

_FIRST_BLOCK, _MAX_ROWS = 256, 8192
_MAX_SCORES = 8 << 20
"""Scores in one product: 32 MiB."""
_PAIR_BLOCK = 2048
_GATHER_BELOW = 0.5
"""Below this share of chosen rows in a block, they are copied out. Above it, the others are masked afterwards."""
_ROUNDS = 12


class DeadlinePassed(Exception):
    """The request took too long: its caller no longer waits."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Rows (best first) and cosines for each query, shape (queries, k). Missing rows are -1."""

    rows: Any
    scores: Any


def check_deadline(deadline: float) -> None:
    """Check a deadline of `time.monotonic`.

    Raises:
        DeadlinePassed: it has passed.
    """
    if time.monotonic() > deadline:
        raise DeadlinePassed


def nearest(
    arrays: ArrayModule, queries: Array, vectors: Array, k: int, chosen: Any = None, *, deadline: float = float("inf")
) -> Neighbours:
    """Find the k nearest rows for each query; ties in row order. `chosen` (a mask on the host) limits the rows."""
    xp = arrays.module
    best = _Best(arrays, len(queries), k)
    most = min(_MAX_ROWS, max(_FIRST_BLOCK, _MAX_SCORES // max(len(queries), 1)))
    start, size = 0, _FIRST_BLOCK if len(queries) > 1 else most
    while start < len(vectors):
        check_deadline(deadline)
        block, taken = vectors[start : start + size], None if chosen is None else chosen[start : start + size]
        if taken is None or taken.all():
            best.add(queries @ block.T, start)
        elif taken.mean() < _GATHER_BELOW:
            rows = arrays.to_device(taken.nonzero()[0])
            if len(rows):
                best.add(queries @ block[rows].T, rows + start)
        else:
            scores = queries @ block.T
            scores[:, arrays.to_device(~taken)] = -xp.inf
            best.add(scores, start)
        start += size
        size = min(size * 2, most)
    return best.neighbours()


class _Best:
    """The k best rows of each query so far, in one list ordered by query, then score."""

    def __init__(self, arrays: ArrayModule, count: int, k: int) -> None:
        self._arrays, self._count, self._k = arrays, count, k
        xp = arrays.module
        self._query = xp.empty(0, dtype=xp.int64)
        self._row = xp.empty(0, dtype=xp.int64)
        self._score = xp.empty(0, dtype=xp.float32)
        self._least = xp.full(count, -xp.inf, dtype=xp.float32)

    def add(self, scores: Array, rows: Any) -> None:
        """Add scores, shape (queries, rows). `rows` are row numbers, or the first of consecutive ones."""
        xp = self._arrays.module
        query, column = xp.nonzero(scores > self._least[:, None])
        if not len(query):
            return
        row = column + rows if isinstance(rows, int) else rows[column]
        self._query = xp.concatenate([self._query, query])
        self._row = xp.concatenate([self._row, row])
        self._score = xp.concatenate([self._score, scores[query, column]])
        self._keep_best()

    def neighbours(self) -> Neighbours:
        """The result."""
        xp = self._arrays.module
        rows = xp.full((self._count, self._k), -1, dtype=xp.int64)
        scores = xp.zeros((self._count, self._k), dtype=xp.float32)
        rank = self._rank()
        rows[self._query, rank], scores[self._query, rank] = self._row, self._score
        return Neighbours(self._arrays.to_host(rows), self._arrays.to_host(scores))

    def _keep_best(self) -> None:
        xp = self._arrays.module
        order = xp.argsort(-self._score, kind="stable")
        order = order[xp.argsort(self._query[order], kind="stable")]
        self._query, self._row, self._score = self._query[order], self._row[order], self._score[order]
        rank = self._rank()
        kept = rank < self._k
        last = rank == self._k - 1
        self._least[self._query[last]] = self._score[last]
        self._query, self._row, self._score = self._query[kept], self._row[kept], self._score[kept]

    def _rank(self) -> Array:
        """The rank of each entry within its query."""
        xp = self._arrays.module
        counts = xp.bincount(self._query, minlength=self._count)
        return xp.arange(len(self._query)) - (xp.cumsum(counts) - counts)[self._query]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of rows, most similar first, and their total number."""

    left: Any
    right: Any
    scores: Any
    total: int


def similar_pairs(
    arrays: ArrayModule,
    vectors: Array,
    least: float,
    most: int,
    same: Any,
    *,
    deadline: float = float("inf"),
) -> Pairs:
    """Find the pairs of rows with a cosine of at least `least`; return the best `most` of them.

    `same` has one integer per row. Two rows with the same integer belong together and are not a pair.
    """
    xp = arrays.module
    kept = (xp.empty(0, dtype=xp.int64), xp.empty(0, dtype=xp.int64), xp.empty(0, dtype=xp.float32))
    total, same = 0, arrays.to_device(same)
    for start in range(0, len(vectors), _PAIR_BLOCK):
        left = vectors[start : start + _PAIR_BLOCK]
        for other in range(start, len(vectors), _PAIR_BLOCK):
            check_deadline(deadline)
            scores = left @ vectors[other : other + _PAIR_BLOCK].T
            i, j = xp.nonzero(scores >= least)
            found = scores[i, j]
            i, j = i + start, j + other
            real = (i < j) & (same[i] != same[j])
            if not real.any():
                continue
            total += int(real.sum())
            kept = tuple(xp.concatenate(both) for both in zip(kept, (i[real], j[real], found[real]), strict=True))
            if len(kept[0]) > most:
                order = xp.argsort(-kept[2], kind="stable")[:most]
                kept = tuple(part[order] for part in kept)
    order = xp.argsort(-kept[2], kind="stable")
    left_rows, right_rows, scores = (arrays.to_host(part[order]) for part in kept)
    return Pairs(left_rows, right_rows, scores, total)


@dataclass(frozen=True, slots=True)
class Clustering:
    """The cluster of each row, and its cosine to the centre of that cluster."""

    cluster: Any
    closeness: Any


def k_means(arrays: ArrayModule, vectors: Array, count: int, *, deadline: float = float("inf")) -> Clustering:
    """Divide rows into `count` clusters by spherical k-means. Deterministic: the first centres are chosen far apart."""
    centres = _far_apart(arrays, vectors, count, deadline)
    cluster, closeness = _assign(arrays, vectors, centres, deadline)
    for _ in range(_ROUNDS):
        centres = _means(arrays, vectors, cluster, centres)
        before = cluster
        cluster, closeness = _assign(arrays, vectors, centres, deadline)
        if not (cluster != before).any():
            break
    return Clustering(arrays.to_host(cluster), arrays.to_host(closeness))


def _far_apart(arrays: ArrayModule, vectors: Array, count: int, deadline: float) -> Array:
    """The first centre is the row nearest to the mean; each next one is the row least similar to those before."""
    xp = arrays.module
    chosen = [int((vectors @ vectors.mean(axis=0)).argmax())]
    similarity = vectors @ vectors[chosen[0]]
    while len(chosen) < count:
        check_deadline(deadline)
        chosen.append(int(similarity.argmin()))
        similarity = xp.maximum(similarity, vectors @ vectors[chosen[-1]])
    return vectors[arrays.to_device(chosen)]


def _assign(arrays: ArrayModule, vectors: Array, centres: Array, deadline: float) -> tuple[Array, Array]:
    xp = arrays.module
    clusters: list[Array] = []
    closeness: list[Array] = []
    for start in range(0, len(vectors), _MAX_ROWS):
        check_deadline(deadline)
        scores = vectors[start : start + _MAX_ROWS] @ centres.T
        clusters.append(scores.argmax(axis=1))
        closeness.append(scores.max(axis=1))
    return xp.concatenate(clusters), xp.concatenate(closeness)


def _means(arrays: ArrayModule, vectors: Array, cluster: Array, centres: Array) -> Array:
    """The new centres. An empty cluster keeps its centre."""
    xp = arrays.module
    means = centres.copy()
    for number in range(len(centres)):
        rows = vectors[cluster == number]
        if len(rows):
            total = rows.sum(axis=0)
            length = float(xp.linalg.norm(total))
            if length > 0:
                means[number] = total / length
    return means
