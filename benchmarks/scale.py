"""How far one Redis scales: ingesting, keeping, searching and restarting with 10,000 and 100,000 memories.

`python -m benchmarks.scale [NUMBER …]`. The vectors are those of real conversations and mixtures of them, stored
through MCP. The index is queried as the product does, compared with brute force, and with other EF_RUNTIME values.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.metrics import percentile
from benchmarks.raw_client import RawClient, Refused
from benchmarks.service import Texts, clients
from benchmarks.serving import Product, product
from benchmarks.vectors import questions_and_texts
from memory_core.records.keys import Keys
from memory_core.records.vectors import Matrix, to_stored
from memory_core.redis_client import Client
from memory_core.settings.settings import VectorStoreSettings

SIZES = (10_000, 100_000)
EF_RUNTIMES = (10, 50, 100, 200, 300)
"""EF_RUNTIME: the number of candidates of a graph search. The last is the product's."""
QUERIES, K, DEPTH = 200, 10, 40
_AT_ONCE = 200
_PATIENCE = 900.0
_MODEL = VectorStoreSettings().model
_EXACT = f"(@expires_at:[0 inf])=>[KNN {K} @vec $v HYBRID_POLICY ADHOC_BF AS distance]"


async def ingest(client: RawClient, vectors: Matrix, texts: Texts) -> float:
    """Store one memory per vector, in batches; return the seconds."""
    began = time.perf_counter()
    for start in range(0, len(vectors), _AT_ONCE):
        operations = [
            {"op": "store_memory", "content": texts.turn(), "memory_type": "embedding", "vector": vector.tolist()}
            for vector in vectors[start : start + _AT_ONCE]
        ]
        answer = await client.call("batch_operations", operations=operations)
        assert answer["succeeded"] == len(operations), answer["results"][0]
    return time.perf_counter() - began


async def latencies(client: RawClient, texts: Texts, mode: str) -> list[float]:
    """Milliseconds of uncached searches, one at a time."""
    taken: list[float] = []
    for _ in range(QUERIES):
        question = texts.question()
        began = time.perf_counter()
        await client.call("semantic_search", query=question, mode=mode)
        taken.append((time.perf_counter() - began) * 1000)
    return taken


async def graph_recall(
    redis: Client, keys: Keys, asked: Matrix, truth: Sequence[set[bytes]], ef: int
) -> dict[str, float]:
    """Recall@10 and milliseconds of the graph alone, with this many candidates."""
    taken, found = list[float](), list[float]()
    for vector, best in zip(asked, truth, strict=True):
        began = time.perf_counter()
        answer = await redis.execute_command(
            "FT.SEARCH", keys.index_alias, f"*=>[KNN {DEPTH} @vec $v EF_RUNTIME {ef} AS distance]",
            "PARAMS", 2, "v", to_stored(vector, _MODEL), "DIALECT", 2, "NOCONTENT", "SORTBY", "distance", "LIMIT", 0, K,
        )  # fmt: skip
        taken.append((time.perf_counter() - began) * 1000)
        found.append(len(best.intersection(result[b"id"] for result in answer[b"results"])) / K)
    return {"recall": float(np.mean(found)), "p50_ms": percentile(taken, 0.5), "p95_ms": percentile(taken, 0.95)}


async def exact(redis: Client, keys: Keys, asked: Matrix) -> list[set[bytes]]:
    """The ten nearest of each question, by brute force over all memories."""
    truth: list[set[bytes]] = []
    for vector in asked:
        answer = await redis.execute_command(
            "FT.SEARCH", keys.index_alias, _EXACT,
            "PARAMS", 2, "v", to_stored(vector, _MODEL), "DIALECT", 2, "NOCONTENT", "SORTBY", "distance", "LIMIT", 0, K,
            "TIMEOUT", 20_000,
        )  # fmt: skip
        truth.append({result[b"id"] for result in answer[b"results"]})
    return truth


async def restart(running: Product, client: RawClient) -> float:
    """Kill Redis; return the seconds until a search is complete again."""
    os.kill(running.state().redis_pid or 0, signal.SIGKILL)
    began = time.perf_counter()
    while time.perf_counter() - began < _PATIENCE:
        await asyncio.sleep(0.2)
        try:
            if not (await client.call("semantic_search", query="are you there", mode="keyword"))["partial"]:
                return time.perf_counter() - began
        except Refused:
            continue
    raise TimeoutError("Redis did not come back")


async def measure(size: int, asked: Matrix, vectors: Matrix) -> dict[str, Any]:
    """Measure everything on a separate product."""
    texts, keys = Texts(), Keys("scale")
    with product() as running:
        async with clients(running.url, 1, "scale") as (client,), running.redis() as redis:
            empty = (await redis.info("memory"))["used_memory"]
            seconds = await ingest(client, vectors[:size], texts)
            used = (await redis.info("memory"))["used_memory"] - empty
            row: dict[str, Any] = {"memories": size, "stores_per_second": size / seconds, "bytes_each": used / size}
            for mode in ("hybrid", "vector", "keyword"):
                taken = await latencies(client, texts, mode)
                row |= {f"{mode}_p{share}_ms": percentile(taken, share / 100) for share in (50, 95, 99)}
            truth = await exact(redis, keys, asked)
            row["graph"] = {ef: await graph_recall(redis, keys, asked, truth, ef) for ef in EF_RUNTIMES}
            row["restart_seconds"] = await restart(running, client)
    return row


def main() -> None:
    """Measure each size, print the table and save it as JSON."""
    sizes = tuple(map(int, sys.argv[1:])) or SIZES
    asked, vectors = questions_and_texts(max(sizes))
    asked = asked[np.random.default_rng(3).permutation(len(asked))[:QUERIES]]
    rows = [asyncio.run(measure(size, asked, vectors)) for size in sizes]
    results.save("scale", rows)
    results.show("one Redis", [{name: value for name, value in row.items() if name != "graph"} for row in rows])
    curve = [
        {"memories": row["memories"], "ef_runtime": ef, **found} for row in rows for ef, found in row["graph"].items()
    ]
    results.show("the graph alone, by EF_RUNTIME", curve)


if __name__ == "__main__":
    main()
