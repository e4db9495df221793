"""FAISS indexes over a mirror, for many approximate searches.

An index covers the rows that existed when it was built. Newer rows are compared one by one, and a bitmap hides dead
and forbidden rows. So an index is never wrong, only old.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from memory_core.records.vectors import Matrix
from memory_core.store.bulk_messages import IndexType
from memory_embedder.bulk.array_module import ArrayModule
from memory_embedder.bulk.mirror import Mask
from memory_embedder.bulk.numerics import Neighbours, nearest

HNSW_EDGES, HNSW_BREADTH = 32, 128
MIN_RECALL = 0.98
_SAMPLE, _SAMPLE_K = 128, 10
_TRAINING_VECTORS = 64
"""Training vectors per list of an IVF index. FAISS warns below 39."""
_MAX_FROM_GPU = 2048


class FaissLibrary:
    """The FAISS library. `name` is empty if it is not installed."""

    def __init__(self, *, gpus: bool = True) -> None:
        try:
            self.module: Any = importlib.import_module("faiss")
        except ImportError:
            self.module, self.name, self.gpus = None, "", 0
            return
        self.name = str(self.module.__version__)
        self.gpus = int(self.module.get_num_gpus()) if gpus else 0

    def usable(self, requested: IndexType) -> IndexType:
        """The kind of index to use here instead of the requested one."""
        if self.module is None:
            return "Flat"
        return "HNSW" if requested == "CAGRA" and not self.gpus else requested


@dataclass(frozen=True, slots=True)
class FaissIndex:
    """An index over the first `covered` rows. `effort` is the number of lists or candidates that a search visits."""

    kind: IndexType
    index: Any
    covered: int
    changes: int
    effort: int
    on_gpu: bool
    nbytes: int

    def search(self, faiss: FaissLibrary, queries: Matrix, k: int, chosen: Mask) -> Neighbours:
        """Find approximately the k nearest of the chosen rows that the index covers."""
        chosen = chosen[: self.covered]
        if self.on_gpu:
            return self._search_gpu(queries, k, chosen)
        return _search_cpu(faiss.module, self.index, self.kind, queries, k, chosen, self.effort)

    def _search_gpu(self, queries: Matrix, k: int, chosen: Mask) -> Neighbours:
        """GPU indexes do not support a bitmap, so this fetches more rows and drops those that are not chosen."""
        share = max(float(chosen.mean()), 1e-3)
        wanted = min(max(math.ceil(2 * k / share), k), self.covered, _MAX_FROM_GPU)
        scores, rows = self.index.search(queries, wanted)
        if self.kind == "CAGRA":
            scores = 1 - scores / 2
        hidden = (rows < 0) | ~chosen[np.maximum(rows, 0)]
        scores[hidden] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        rows[~np.isfinite(scores)] = -1
        return Neighbours(rows, scores)


def build(faiss: FaissLibrary, kind: IndexType, vectors: Matrix, changes: int) -> FaissIndex:
    """Index rows, and find the lowest effort whose recall on a sample is high enough."""
    index = _make(faiss.module, kind, vectors)
    effort = _calibrate(faiss.module, index, kind, vectors)
    on_gpu = kind == "CAGRA" or (faiss.gpus > 0 and kind == "IVFFlat")
    if on_gpu and kind == "IVFFlat":
        index.nprobe = effort
        options = faiss.module.GpuMultipleClonerOptions()
        options.shard = True
        index = faiss.module.index_cpu_to_all_gpus(index, options)
    edges = 8 * HNSW_EDGES if kind == "HNSW" else 8
    return FaissIndex(kind, index, len(vectors), changes, effort, on_gpu, vectors.nbytes + edges * len(vectors))


def _make(library: Any, kind: IndexType, vectors: Matrix) -> Any:
    dimension = vectors.shape[1]
    if kind == "HNSW":
        index = library.IndexHNSWFlat(dimension, HNSW_EDGES, library.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BREADTH
        index.add(vectors)
        return index
    if kind == "CAGRA":
        index = library.GpuIndexCagra(library.StandardGpuResources(), dimension)
        index.train(vectors)
        return index
    lists = max(1, round(math.sqrt(len(vectors))))
    index = library.IndexIVFFlat(library.IndexFlatIP(dimension), dimension, lists, library.METRIC_INNER_PRODUCT)
    sample = vectors[:: max(1, len(vectors) // (_TRAINING_VECTORS * lists))]
    index.train(sample)
    index.add(vectors)
    return index


def _calibrate(library: Any, index: Any, kind: IndexType, vectors: Matrix) -> int:
    """Double the effort until the index finds what an exact search finds.

    The sample queries are sums of rows and half of the rows are hidden, because real queries are not rows and callers
    do not see all rows. Real queries may be further away from the rows, so the result is doubled once more.
    """
    if kind == "CAGRA":
        return 0
    half = np.arange(len(vectors)) % 2 == 0
    k = min(_SAMPLE_K, int(half.sum()))
    spread = vectors[:: max(1, len(vectors) // _SAMPLE)][:_SAMPLE]
    sample = spread + np.roll(spread, 1, axis=0) + np.roll(spread, 2, axis=0)
    sample /= np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), 1e-6)
    exact = nearest(ArrayModule(), sample, vectors, k, half).scores[:, -1]
    effort, most = (4, int(index.nlist)) if kind == "IVFFlat" else (32, max(len(vectors), 32))
    while effort < most:
        found = _search_cpu(library, index, kind, sample, k, half, effort)
        if (found.scores >= exact[:, None] - 1e-5).mean() >= MIN_RECALL:
            return min(2 * effort, most)
        effort *= 2
    return most


def _search_cpu(
    library: Any, index: Any, kind: IndexType, queries: Matrix, k: int, chosen: Mask, effort: int
) -> Neighbours:
    bitmap = np.packbits(chosen, bitorder="little")
    selector = library.IDSelectorBitmap(bitmap)
    if kind == "HNSW":
        parameters = library.SearchParametersHNSW(sel=selector, efSearch=max(effort, k))
    else:
        parameters = library.SearchParametersIVF(sel=selector, nprobe=effort)
    scores, rows = index.search(queries, k, params=parameters)
    return Neighbours(rows, scores)
