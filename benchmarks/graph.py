"""Recall, build time and size of the index, by the format of the vectors and the parameters of the graph.

`python -m benchmarks.graph [mixtures]`: the vectors of all chunks of the real conversations, and that many mixtures of
two more. Questions are those of the conversations; the truth is the comparison of float32 vectors.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from itertools import product as combinations
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.evalset import load
from benchmarks.metrics import percentile
from benchmarks.scale_constants import used
from benchmarks.serving import product
from benchmarks.vectors import MODEL, grown
from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, to_stored
from memory_core.redis_client import Client
from memory_core.settings.groups import HnswSettings
from memory_core.store import index
from memory_embedder.engines.backends import load_encoder
from memory_embedder.engines.encoder import encode
from memory_embedder.engines.encoder_options import EncoderOptions
from memory_server.memories.splitter import split

SETS = ("locomo", "realtalk", "cranfield", "beam100k")
GRAPHS = ((16, 200), (16, 100), (12, 200), (12, 100), (8, 100))
DEPTHS = (10, 40)
_EF_RUNTIME, _QUESTIONS = 300, 500
Row = dict[str, Any]


def real_vectors() -> tuple[Matrix, Matrix]:
    """The vectors of all questions and of all chunks, shape (n, dimension)."""
    conversations = [one for name in SETS for one in load(name)]
    encoder = load_encoder("auto", EncoderOptions(MODEL))
    asked = encode(encoder, [question.text for one in conversations for question in one.questions])
    chunks = [chunk for one in conversations for memory in one.memories for chunk in split(memory["text"])]
    return asked, np.unique(encode(encoder, chunks), axis=0)


async def build(client: Client, keys: Keys, model: Model, graph: HnswSettings, vectors: Matrix) -> tuple[float, float]:
    """Make an index, then write bare records; returns the seconds and the bytes of each."""
    if await index.coverage(client, keys.index()):
        await client.ft(keys.index()).dropindex(delete_documents=True)
        await _freed(client)
    fields = [field for field in index.memory_fields(model, graph) if field.as_name == "vec"]
    await index.create_index(client, keys.index(), [keys.memory_prefix], fields, scan=False)
    before, began = await used(client), time.perf_counter()
    for start in range(0, len(vectors), 200):
        pipe = client.pipeline(transaction=False)
        for number, vector in enumerate(vectors[start : start + 200], start):
            pipe.hset(keys.memory(f"{number:08}"), model.field, to_stored(vector, model))
        await pipe.execute()
    return time.perf_counter() - began, (await used(client) - before) / len(vectors)


async def _freed(client: Client) -> None:
    """Wait until the Query Engine has freed a dropped index, which it does in the background."""
    before = await used(client)
    while True:
        await asyncio.sleep(2)
        if before - (now := await used(client)) < 1 << 16:
            return
        before = now


async def nearest(client: Client, keys: Keys, model: Model, query: Matrix, k: int) -> tuple[list[int], float]:
    """The numbers of the k nearest that the graph finds, and the milliseconds."""
    began = time.perf_counter()
    answer = await client.execute_command(
        "FT.SEARCH", keys.index(), f"*=>[KNN {k} @vec $v EF_RUNTIME {_EF_RUNTIME} AS distance]",
        "PARAMS", 2, "v", to_stored(query, model), "DIALECT", 2, "NOCONTENT", "SORTBY", "distance", "LIMIT", 0, k,
    )  # fmt: skip
    taken = (time.perf_counter() - began) * 1000
    return [int(result[b"id"].decode()[-8:]) for result in answer[b"results"]], taken


async def measure(client: Client, asked: Matrix, vectors: Matrix) -> list[Row]:
    """Build each index in turn, and compare what it finds with the exact answer."""
    truth = [np.argsort(-(vectors @ query), kind="stable")[: max(DEPTHS)] for query in asked]
    keys, rows = Keys("graph"), list[Row]()
    for half, (m, construction) in combinations((False, True), GRAPHS):
        model = Model(MODEL, vectors.shape[1], half=half)
        graph = HnswSettings(m=m, ef_construction=construction)
        seconds, size = await build(client, keys, model, graph, vectors)
        row: Row = {"format": model.precision, "m": m, "ef_construction": construction}
        for k in DEPTHS:
            found = [await nearest(client, keys, model, query, k) for query in asked]
            row[f"recall@{k}"] = _recall([near for near, _ in found], truth, k)
            row[f"p50_ms of {k}"] = percentile([taken for _, taken in found], 0.5)
        rows.append(row | {"build_s": seconds, "bytes_each": size})
        print(rows[-1], flush=True)
    return rows


def _recall(found: Sequence[Sequence[int]], truth: Sequence[np.ndarray[Any, Any]], k: int) -> float:
    shares = [len({*near} & {*exact[:k].tolist()}) / k for near, exact in zip(found, truth, strict=True)]
    return float(np.mean(shares))


async def run(mixtures: int) -> Row:
    """Measure on a separate Redis."""
    asked, texts = real_vectors()
    asked = asked[np.random.default_rng(3).permutation(len(asked))[:_QUESTIONS]]
    with product() as running:
        async with running.redis() as client:
            return {
                "chunks": len(texts),
                "mixtures": mixtures,
                "rows": await measure(client, asked, grown(texts, len(texts) + mixtures, 7)),
            }


def main() -> None:
    """Measure, print the table and save it as JSON."""
    found = asyncio.run(run(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
    results.save(f"graph-{found['chunks'] + found['mixtures']}", found)
    results.show(f"{found['chunks']} real vectors and {found['mixtures']} mixtures", found["rows"])


if __name__ == "__main__":
    main()
