"""Nearest-neighbour search within a permission, compared with RediSearch's automatic policy, at several selectivities.

`python -m benchmarks.filtered [memories]` uses the product's index and query. Each query runs in every way in turn, so
that disturbances affect all of them.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.metrics import percentile
from benchmarks.serving import product
from benchmarks.vectors import MODEL, questions_and_texts
from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, to_stored
from memory_core.redis_client import Client
from memory_core.settings.settings import VectorStoreSettings
from memory_core.store import index
from memory_server.index.query_builder import Query, having, with_neighbours
from memory_server.search import knn_policy

SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.6, 1.0)
DEPTHS = (10, 100)
QUERIES, ROUNDS, K = 100, 5, 10
_MODEL = Model(MODEL, 384)
Row = dict[str, Any]


async def store(client: Client, keys: Keys, vectors: Matrix) -> dict[float, np.ndarray[Any, Any]]:
    """Write bare records, each readable to some of the callers; return the numbers that each may read."""
    chance = np.random.default_rng(1)
    readable = {share: np.flatnonzero(chance.random(len(vectors)) < share) for share in SHARES}
    scopes: list[list[str]] = [[] for _ in vectors]
    for share, numbers in readable.items():
        for number in numbers:
            scopes[number].append(f"o:{share}")
    for start in range(0, len(vectors), 500):
        pipe = client.pipeline(transaction=False)
        for number in range(start, min(start + 500, len(vectors))):
            record = {"scope": "\x1f".join(scopes[number]), "expires_at": "inf"}
            pipe.hset(keys.memory(f"{number:08}"), mapping=record | {_MODEL.field: to_stored(vectors[number], _MODEL)})
        await pipe.execute()
    return readable


async def ask(
    client: Client, keys: Keys, share: float, vector: Matrix, depth: int, way: str
) -> tuple[list[int], float]:
    """The nearest, best first, and the milliseconds taken."""
    query = with_neighbours(
        having(Query("@expires_at:[5 inf]"), "scope", f"o:{share}"), to_stored(vector, _MODEL), depth, way
    )
    started = time.perf_counter()
    answer = await client.execute_command(
        "FT.SEARCH", keys.index_alias, query.text, *query.arguments(), "NOCONTENT", "TIMEOUT", 10_000,
        "SORTBY", "distance", "ASC", "LIMIT", 0, depth,
    )  # fmt: skip
    taken = (time.perf_counter() - started) * 1000
    return [int(result[b"id"].decode()[-8:]) for result in answer[b"results"]], taken


async def measure(client: Client, keys: Keys, asked: Matrix, vectors: Matrix, count: int) -> list[Row]:
    """Compare the automatic policy with the product's at each selectivity and depth."""
    readable = await store(client, keys, vectors)
    rows: list[Row] = []
    for share, numbers in readable.items():
        exact = [set(numbers[np.argsort(-(vectors[numbers] @ vector))[:K]].tolist()) for vector in asked]
        for depth in DEPTHS:
            ours = knn_policy.choose(len(numbers), count, depth)
            rows.append(await _compare(client, keys, share, asked, depth, ours, exact))
    return rows


async def _compare(
    client: Client, keys: Keys, share: float, asked: Matrix, depth: int, ours: str, exact: Sequence[set[int]]
) -> Row:
    taken: dict[str, list[list[float]]] = {"": [], ours: []}
    found: dict[str, list[float]] = {"": [], ours: []}
    for _ in range(ROUNDS):
        for way in taken:
            taken[way].append([])
        for vector, truth in zip(asked, exact, strict=True):
            for way in taken:
                near, milliseconds = await ask(client, keys, share, vector, depth, way)
                taken[way][-1].append(milliseconds)
                found[way].append(len(truth.intersection(near[:K])) / K)
    ratios = [percentile(a, 0.95) / percentile(b, 0.95) for a, b in zip(taken[""], taken[ours], strict=True)]
    row: Row = {"share": share, "depth": depth, "way": ours.split()[1]}
    for name, way in (("automatic", ""), ("ours", ours)):
        every = [one for round_ in taken[way] for one in round_]
        row |= {f"{name}_p50_ms": percentile(every, 0.5), f"{name}_p95_ms": percentile(every, 0.95)}
        row |= {f"{name}_recall": float(np.mean(found[way]))}
    return row | {"p95_ratio": float(np.median(ratios)), "least": min(ratios), "most": max(ratios)}


async def run(count: int) -> list[Row]:
    """Measure on a separate Redis."""
    asked, vectors = questions_and_texts(count)
    asked = asked[np.random.default_rng(3).permutation(len(asked))[:QUERIES]]
    with product() as running:
        async with running.redis() as client:
            await index.ensure_namespace(client, "filtered", VectorStoreSettings())
            return await measure(client, Keys("filtered"), asked, vectors, count)


def main() -> None:
    """Measure, print the table and save it as JSON."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    rows = asyncio.run(run(count))
    results.save("filtered", {"memories": count, "rows": rows})
    results.show(f"the nearest among what may be read, of {count} memories", rows)


if __name__ == "__main__":
    main()
