"""The bulk engine compared with raw FAISS and the Query Engine, in one run.

`python -m benchmarks.bulk [vectors [rounds of batches]]`. The vectors are synthetic: unit length, around a thousand
topics, in the dimension of MiniLM. The benchmark measures speed and also compares the answers.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np
from mcp import Client as McpClient

from benchmarks import results
from benchmarks.long_content import text, until_embedded
from benchmarks.mcp_client import call
from benchmarks.serving import Product, product
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, to_bytes, to_stored
from memory_core.redis_client import Client
from memory_core.store.bulk_messages import IndexType, Nearest, NearestFound, Selection
from memory_embedder.bulk.array_module import ArrayModule
from memory_embedder.bulk.engine import BulkEngine, Snapshot
from memory_embedder.bulk.faiss_index import FaissLibrary
from memory_embedder.bulk.mirror_cache import CachedMirror, MirrorCache

DIMENSION, QUERIES, K, ROUNDS = 384, 1000, 10, 5
LOOPED = 100
MODEL = "all-MiniLM-L6-v2"
STORED = Model(MODEL, DIMENSION)
EVERYBODY = Selection(every=[("scope", ["pub"])])
Rows = dict[str, Any]


def unit_vectors(count: int, seed: int) -> Matrix:
    """Rows around a thousand topics."""
    middles = np.random.default_rng(0).standard_normal((1000, DIMENSION), dtype=np.float32)
    chance = np.random.default_rng(seed)
    rows = middles[chance.integers(0, len(middles), count)]
    rows += 0.7 * chance.standard_normal((count, DIMENSION), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def timed(*measured: Callable[[], Any]) -> list[list[float]]:
    """Seconds of each, in turn, round by round, after a warm-up round. A disturbance hits all of them."""
    seconds: list[list[float]] = [[] for _ in measured]
    for number in range(ROUNDS + 1):
        for place, function in enumerate(measured):
            started = time.perf_counter()
            function()
            if number:
                seconds[place].append(time.perf_counter() - started)
    return seconds


def spread(seconds: Sequence[float]) -> Rows:
    """Median, minimum and maximum, in seconds."""
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


async def store_raw(redis: Client, namespace: str, vectors: Matrix) -> None:
    """Write hashes like the product's directly, because storing is measured elsewhere. Half of them are private."""
    names = Keys(namespace)
    for start in range(0, len(vectors), 500):
        pipe = redis.pipeline(transaction=False)
        for number, vector in enumerate(vectors[start : start + 500], start):
            scope = f"o:owner{number % 7}\x1fi:{number}\x1fy:owner:context" + ("\x1fpub" if number % 2 else "")
            record = {"content": "x", "owner": f"owner{number % 7}", "type": "context", "priority": "medium"}
            record |= {"scope": scope, "expires_at": "inf", "hash": "h", "tags": f"tag{number % 100}"}
            pipe.hset(names.memory(new_id()), mapping=record | {STORED.field: to_stored(vector, STORED)})
        await pipe.execute()


async def fill(redis: Client, engine: BulkEngine, count: int) -> tuple[CachedMirror, Snapshot, Rows]:
    """Time filling a mirror of the namespace, several times."""
    seconds: list[float] = []
    cpu: list[float] = []
    cached, seen = await MirrorCache(redis, engine, MODEL, DIMENSION, 1 << 34).snapshot("bench", EVERYBODY)
    for _ in range(ROUNDS):
        cache = MirrorCache(redis, engine, MODEL, DIMENSION, 1 << 34)
        started, used = time.perf_counter(), time.process_time()
        cached, seen = await cache.snapshot("bench", EVERYBODY)
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    assert cached.mirror.living == count
    return (
        cached,
        seen,
        {
            "vectors_per_second": spread([count / one for one in seconds]),
            "vectors_per_cpu_second": spread([count / one for one in cpu]),
            "bytes_per_vector": cached.mirror.nbytes / count,
        },
    )


def selecting(cached: CachedMirror) -> Rows:
    """Time a permission filter of a thousand tokens of single memories, contexts and owners over all rows."""
    tokens = [f"i:{memory_id}" for memory_id in cached.mirror.ids[: 990 * 50 : 50]] + [f"o:owner{n}" for n in range(7)]
    wide = Selection(every=[("scope", [*tokens, "pub"])])
    (seconds,) = timed(lambda: cached.mirror.select(wide, time.time()))
    return {"tokens": len(tokens) + 1, "seconds": spread(seconds)}


def comparing(engine: BulkEngine, cached: CachedMirror, seen: Snapshot, queries: Matrix) -> Rows:
    """Exact ten nearest of a thousand queries compared with FAISS's flat index, and with half of the rows permitted."""
    library: Any = faiss
    faiss_index = library.IndexFlatIP(DIMENSION)
    faiss_index.add(cached.mirror.vectors)
    everything = Snapshot(seen.vectors, seen.ids, seen.pieces, np.ones(len(seen.chosen), np.bool_), seen.device_rows)
    few = queries[:LOOPED]
    bitmap = library.IDSelectorBitmap(np.packbits(seen.chosen, bitorder="little"))

    def faiss_flat(asked: Matrix, **options: Any) -> Any:
        return faiss_index.search(asked, K, **options)

    def product(what: Snapshot, asked: Matrix) -> NearestFound:
        request = Nearest(selection=EVERYBODY, queries=to_bytes(asked), k=K)
        return engine.nearest(what, request, asked, None, float("inf"))

    found = np.frombuffer(product(everything, queries).scores, dtype="<f4").reshape(-1, K)
    expected, _ = faiss_index.search(queries, K)
    assert np.allclose(found, expected, atol=1e-5)
    names = ("engine", "faiss_flat", "engine_half_permitted", "faiss_flat_half_permitted")
    seconds = timed(
        lambda: product(everything, queries),
        lambda: faiss_flat(queries),
        lambda: product(seen, few),
        lambda: faiss_flat(few, params=library.SearchParameters(sel=bitmap)),
    )
    rows: Rows = {name: spread(one) for name, one in zip(names, seconds, strict=True)}
    rows["engine_to_faiss"] = spread([a / b for a, b in zip(seconds[0], seconds[1], strict=True)])
    rows["engine_to_faiss_half_permitted"] = spread([a / b for a, b in zip(seconds[2], seconds[3], strict=True)])
    return rows


def indexes(engine: BulkEngine, seen: Snapshot, queries: Matrix) -> Rows:
    """Each kind of index: build time, time of a thousand queries, recall@10 against brute force."""
    from memory_embedder.bulk.faiss_index import build

    request = Nearest(selection=EVERYBODY, queries=to_bytes(queries), k=K, exact=False)
    exact = engine.nearest(seen, request, queries, None, float("inf"))
    least = np.frombuffer(exact.scores, dtype="<f4").reshape(-1, K)[:, -1:]
    rows: Rows = {}
    kinds: tuple[IndexType, ...] = ("IVFFlat", "HNSW")
    for kind in kinds:
        started = time.perf_counter()
        index = build(engine.faiss, kind, seen.vectors, 0)
        built = time.perf_counter() - started
        found = engine.nearest(seen, request, queries, index, float("inf"))
        recall = float((np.frombuffer(found.scores, dtype="<f4").reshape(-1, K) >= least - 1e-5).mean())
        started = time.perf_counter()
        engine.nearest(seen, request, queries, index, float("inf"))
        rows[kind] = {
            "build_seconds": built,
            "seconds": time.perf_counter() - started,
            "recall": recall,
            "effort": index.effort,
        }
    return rows


async def looped(redis: Client, queries: Matrix) -> Rows:
    """The same queries on the Query Engine's FLAT index one by one. Measures a share of them and scales up."""
    names = Keys("bench")
    await redis.execute_command(
        "FT.CREATE", "bench:flat", "PREFIX", 1, names.memory_prefix, "SCHEMA", STORED.field, "AS", "vec",
        "VECTOR", "FLAT", 6, "TYPE", "FLOAT16", "DIM", DIMENSION, "DISTANCE_METRIC", "COSINE",
    )  # fmt: skip
    while int((await redis.execute_command("FT.INFO", "bench:flat"))[b"indexing"]):
        await asyncio.sleep(0.2)
    seconds: list[float] = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for query in queries[:LOOPED]:
            await redis.execute_command(
                "FT.SEARCH", "bench:flat", f"*=>[KNN {K} @vec $q AS d]", "PARAMS", 2, "q", to_stored(query, STORED),
                "NOCONTENT", "SORTBY", "d", "LIMIT", 0, K, "TIMEOUT", 10_000, "DIALECT", 2,
            )  # fmt: skip
        seconds.append((time.perf_counter() - started) * len(queries) / LOOPED)
    await redis.execute_command("FT.DROPINDEX", "bench:flat")
    return spread(seconds)


async def batches(running: Product, rounds: int, memories: int = 2000, searches: int = 256) -> Rows:
    """Searches in one call and in as many calls, with uncached and with cached texts."""
    rows: Rows = {}
    async with McpClient(f"{running.url}?agent=one&namespace=batch") as client:
        for start in range(0, memories, 500):
            stores = [{"op": "store_memory", "content": text(150, n)} for n in range(start, start + 500)]
            await call(client, "batch_operations", operations=stores)
        await until_embedded(client)
        for mode in ("vector", "hybrid"):
            for known in (False, True):
                ratios: list[float] = []
                singles: list[float] = []
                together: list[float] = []
                for number in range(rounds):
                    seed = 100_000 + 10_000 * number
                    lists = [[text(40, seed + place * 5000 + n) for n in range(searches)] for place in range(2)]
                    if known:
                        lists[1] = lists[0]
                        await call(client, "batch_operations", operations=_searches(lists[0], mode))
                    started = time.perf_counter()
                    for query in lists[0]:
                        await call(client, "semantic_search", query=query, mode=mode, limit=5)
                    singles.append(time.perf_counter() - started)
                    started = time.perf_counter()
                    answer = await call(client, "batch_operations", operations=_searches(lists[1], mode), max_tokens=0)
                    together.append(time.perf_counter() - started)
                    assert answer["succeeded"] == searches
                    ratios.append(singles[-1] / together[-1])
                name = f"{mode}, {'known' if known else 'new'} texts"
                rows[name] = {"calls": spread(singles), "batch": spread(together), "ratio": spread(ratios)}
                print(name, rows[name], flush=True)
    return rows


def _searches(queries: Sequence[str], mode: str) -> list[dict[str, Any]]:
    return [{"op": "semantic_search", "query": query, "mode": mode, "limit": 5} for query in queries]


async def main(count: int, rounds: int) -> None:
    """Measure everything, print it and save it."""
    vectors, queries = unit_vectors(count, 1), unit_vectors(QUERIES, 2)
    engine = BulkEngine(ArrayModule(), FaissLibrary(gpus=False))
    rows: Rows = {"vectors": count, "queries": QUERIES, "k": K}

    def note(name: str, row: Rows) -> None:
        rows[name] = row
        print(name, json.dumps(row), flush=True)

    with product() as running:
        async with running.redis() as redis:
            await store_raw(redis, "bench", vectors)
            cached, seen, filled = await fill(redis, engine, count)
            note("mirror", filled)
            note("selection", selecting(cached))
            note("exact", comparing(engine, cached, seen, queries))
            note("indexes", indexes(engine, seen, queries))
            note("redis_flat_looped", await looped(redis, queries))
        rows["redis_to_engine"] = rows["redis_flat_looped"]["median"] / rows["exact"]["engine"]["median"]
        print("redis_to_engine", rows["redis_to_engine"])
        rows["batches"] = await batches(running, rounds)
    results.save("bulk", rows)


if __name__ == "__main__":
    chosen = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(main(*chosen, *(100_000, ROUNDS)[len(chosen) :]))
