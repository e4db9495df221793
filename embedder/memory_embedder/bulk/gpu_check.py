"""The bulk engine's part of `make gpu-check`: compares the GPU's answers with the CPU's, and times them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from memory_core.records.vectors import Matrix
from memory_core.store.bulk_messages import IndexType
from memory_embedder.bulk.array_module import ArrayModule, DeviceRows
from memory_embedder.bulk.faiss_index import MIN_RECALL, FaissLibrary, build
from memory_embedder.bulk.numerics import k_means, nearest, similar_pairs

_ROWS, _DIMENSION, _QUERIES, _K, _RUNS = 100_000, 384, 1000, 10, 5
_TOLERANCE = 1e-4
_PAIR_ROWS = 20_000


def check_bulk() -> Iterator[bool]:
    """For each part that can use the GPU, whether it agrees with the CPU. Empty if none can."""
    arrays, faiss = ArrayModule("cuda:0"), FaissLibrary()
    if arrays.name != "cupy" and not faiss.gpus:
        print(f"bulk engine: NumPy ({arrays.fallback}); FAISS {faiss.name or 'is not installed'}, no GPU")
        return
    vectors, queries = _unit_vectors(_ROWS, 1), _unit_vectors(_QUERIES, 2)
    chosen = np.arange(_ROWS) % 3 > 0
    if arrays.name == "cupy":
        yield _check_arrays(arrays, vectors, queries, chosen)
    kinds: tuple[IndexType, ...] = ("IVFFlat", "CAGRA") if faiss.gpus else ()
    for kind in kinds:
        yield _check_index(faiss, kind, vectors, queries, chosen)


def _check_arrays(arrays: ArrayModule, vectors: Matrix, queries: Matrix, chosen: Any) -> bool:
    host, device_rows = ArrayModule(), DeviceRows(arrays)
    on_device, asked = device_rows.sync(vectors), arrays.to_device(queries)
    for mask in (None, chosen):
        ours = nearest(arrays, asked, on_device, _K, mask)
        exact = nearest(host, queries, vectors, _K, mask)
        if np.abs(ours.scores - exact.scores).max() > _TOLERANCE:
            return _report("CuPy: the nearest rows differ from the CPU's", agrees=False)
    few, same = vectors[:_PAIR_ROWS], np.arange(_PAIR_ROWS)
    totals = [similar_pairs(one, one.to_device(few), 0.8, 1000, same).total for one in (arrays, host)]
    if abs(totals[0] - totals[1]) > max(5, totals[1] // 1000):
        return _report(f"CuPy: {totals[0]} pairs, the CPU {totals[1]}", agrees=False)
    closeness = [float(k_means(one, one.to_device(few), 50).closeness.mean()) for one in (arrays, host)]
    if abs(closeness[0] - closeness[1]) > 0.01:
        return _report(f"CuPy: cluster closeness {closeness[0]:.3f}, the CPU {closeness[1]:.3f}", agrees=False)
    seconds = _median(lambda: nearest(arrays, asked, on_device, _K))
    flops = 2 * _ROWS * _QUERIES * _DIMENSION / seconds
    return _report(f"CuPy: {_QUERIES / seconds:.0f} exact searches/s of {_ROWS} vectors, {flops / 1e12:.1f} TFLOP/s")


def _check_index(faiss: FaissLibrary, kind: IndexType, vectors: Matrix, queries: Matrix, chosen: Any) -> bool:
    index = build(faiss, kind, vectors, 0)
    found = index.search(faiss, queries, _K, chosen)
    least = nearest(ArrayModule(), queries, vectors, _K, chosen).scores[:, -1:]
    recall = float((found.scores >= least - _TOLERANCE).mean())
    if (~chosen[found.rows[found.rows >= 0]]).any():
        return _report(f"FAISS {kind}: returns hidden rows", agrees=False)
    seconds = _median(lambda: index.search(faiss, queries, _K, chosen))
    result = f"FAISS {kind} on {faiss.gpus} GPUs: recall {recall:.3f}, {_QUERIES / seconds:.0f} searches/s"
    return _report(result, agrees=recall >= MIN_RECALL - 0.03)


def _report(text: str, *, agrees: bool = True) -> bool:
    print(f"bulk engine, {text}" + ("" if agrees else " (NOT good enough)"))
    return agrees


def _median(action: Callable[[], Any]) -> float:
    seconds: list[float] = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[_RUNS // 2]


def _unit_vectors(count: int, seed: int) -> Matrix:
    middles = np.random.default_rng(0).standard_normal((1000, _DIMENSION), dtype=np.float32)
    chance = np.random.default_rng(seed)
    rows = middles[chance.integers(0, len(middles), count)]
    rows += 0.7 * chance.standard_normal((count, _DIMENSION), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
