"""How search latency suffers while others store: idle, while a sidecar embeds, and with concurrent writers, in turn.

`python -m benchmarks.ingesting [MEMORIES]`. One client searches with uncached questions. In "embedding" a sidecar works
through the backlog at its full rate. In "storing" four clients also store batches without pause, and share the server's
one core with the searches.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Sequence
from statistics import median

from benchmarks import results
from benchmarks.metrics import percentile
from benchmarks.raw_client import RawClient
from benchmarks.service import Texts, clients, fill
from benchmarks.serving import product

ROUNDS, SECONDS, WRITERS, BATCH, BEFORE = 5, 6.0, 4, 50, 1_600
_BACKLOG = 400
"""Largest backlog, so that the next idle round starts soon."""


async def search(client: RawClient, texts: Texts, seconds: float) -> list[float]:
    """Search for a time; return the milliseconds of each search."""
    taken, until = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < until:
        question, began = texts.question(), time.perf_counter()
        await client.call("semantic_search", query=question)
        taken.append((time.perf_counter() - began) * 1000)
    return taken


async def store_all(client: RawClient, contents: Iterable[str]) -> int:
    """Store texts in one batch, all of which must succeed; return their number."""
    operations = [{"op": "store_memory", "content": content} for content in contents]
    answer = await client.call("batch_operations", operations=operations)
    assert answer["succeeded"] == len(operations), answer["results"]
    return len(operations)


async def store(client: RawClient, texts: Texts, done: asyncio.Event) -> int:
    """Store until stopped, never far ahead of the sidecar; return the number."""
    stored = 0
    while not done.is_set():
        if (await client.call("memory_stats"))["vector_backlog"] > _BACKLOG:
            await asyncio.sleep(0.05)
            continue
        stored += await store_all(client, (texts.turn() for _ in range(BATCH)))
    return stored


async def drained(client: RawClient) -> None:
    """Wait until no memory waits for its vector."""
    while (await client.call("memory_stats"))["vector_backlog"]:
        await asyncio.sleep(0.1)


async def while_embedding(client: RawClient, texts: Texts) -> list[float]:
    """Search while a sidecar embeds what was stored just before."""
    for _ in range(0, BEFORE, BATCH):
        await store_all(client, (texts.turn() for _ in range(BATCH)))
    taken = await search(client, texts, SECONDS)
    assert (await client.call("memory_stats"))["vector_backlog"], "the sidecar finished too early: store more"
    await drained(client)
    return taken


async def while_storing(client: RawClient, writers: Sequence[RawClient], texts: Texts) -> tuple[list[float], int]:
    """Search while others store; also return how many they stored."""
    done = asyncio.Event()
    storing = [asyncio.create_task(store(writer, texts, done)) for writer in writers]
    taken = await search(client, texts, SECONDS)
    done.set()
    stored = sum(await asyncio.gather(*storing))
    await drained(client)
    return taken, stored


async def measure(size: int) -> list[dict[str, float]]:
    """Compare the three in rounds."""
    texts, rows = Texts(), list[dict[str, float]]()
    with product() as running:
        await fill(running, "ingest", size, texts)
        async with clients(running.url, WRITERS + 1, "ingest") as (reader, *writers):
            await search(reader, texts, 3.0)
            for _ in range(ROUNDS):
                idle, embedding = await search(reader, texts, SECONDS), await while_embedding(reader, texts)
                storing, stored = await while_storing(reader, writers, texts)
                row = {"stored_per_second": stored / SECONDS}
                for name, taken in (("idle", idle), ("embedding", embedding), ("storing", storing)):
                    row |= {f"{name}_p50_ms": percentile(taken, 0.5), f"{name}_p95_ms": percentile(taken, 0.95)}
                for name in ("embedding", "storing"):
                    row[f"{name}_p95_ratio"] = row[f"{name}_p95_ms"] / row["idle_p95_ms"]
                rows.append(row)
    return rows


def main() -> None:
    """Measure, print the rounds and their median, and save them as JSON."""
    rows = asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
    results.save("ingesting", rows)
    results.show("searches while others store", [*rows, {name: median(row[name] for row in rows) for name in rows[0]}])


if __name__ == "__main__":
    main()
