"""Constants for docs/scaling.md: the bytes of a memory by kind, and the speed of an index and a stream.

`python -m benchmarks.scale_constants [MEMORIES] [JOBS]`
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from typing import Any

from benchmarks import results
from benchmarks.service import Texts, clients, fill
from benchmarks.serving import Product, product
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.settings.settings import VectorStoreSettings
from memory_core.store.index import coverage, ensure_namespace
from memory_embedder.engines.fake import FakeEncoder
from memory_embedder.sidecar import Sidecar, SidecarOptions

_NAMESPACE, _QUEUE = "scale", "queue"
_AT_ONCE = 200


async def used(client: Client) -> int:
    """Bytes that Redis reports as used."""
    return int((await client.info("memory"))["used_memory"])


async def cpu(client: Client) -> float:
    """CPU seconds of Redis so far, all threads."""
    info = await client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def parts(client: Client, namespace: str) -> Counter[str]:
    """Bytes of the keys of a namespace by kind."""
    prefix, found = Keys(namespace).prefix, Counter[str]()
    cursor = -1
    while cursor:
        cursor, names = await client.scan(max(cursor, 0), match=f"{prefix}*", count=1000)
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.memory_usage(name, samples=50)
        for name, size in zip(names, await pipe.execute(), strict=True):
            found[name.decode()[len(prefix) :].partition(":")[0]] += size or 0
    return found


async def rebuild(client: Client, namespace: str, number: int) -> tuple[float, float]:
    """Drop and rebuild the index; return memories per second of the scan, and Redis's CPU seconds per memory."""
    index = Keys(namespace).index()
    await client.ft(index).dropindex()
    before, began = await cpu(client), time.perf_counter()
    await ensure_namespace(client, namespace, VectorStoreSettings())
    while (covered := await coverage(client, index)) is None or covered.progress < 1 or covered.documents < number:
        await asyncio.sleep(0.05)
    return number / (time.perf_counter() - began), (await cpu(client) - before) / number


async def drain(running: Product, client: Client, texts: Texts, number: int) -> tuple[float, float]:
    """Let a sidecar with a free encoder empty one stream; return jobs per second and Redis's CPU seconds per job."""
    model = VectorStoreSettings(embedding_model="fake", vector_dimension=384)
    await ensure_namespace(client, _QUEUE, model)
    async with clients(running.url, 1, _QUEUE) as (caller,):
        for _ in range(0, number, _AT_ONCE):
            operations = [{"op": "store_memory", "content": texts.turn()} for _ in range(_AT_ONCE)]
            await caller.call("batch_operations", operations=operations)
    jobs = Keys(_QUEUE).jobs("fake")
    waiting, stopping = await client.xlen(jobs), asyncio.Event()
    sidecar = Sidecar(running.redis_url, FakeEncoder(dimension=384), SidecarOptions(bulk_bytes=0, standby=True))
    before, began = await cpu(client), time.perf_counter()
    task = asyncio.create_task(sidecar.run(stopping))
    while await client.xlen(jobs):
        await asyncio.sleep(0.05)
    taken, spent = time.perf_counter() - began, await cpu(client) - before
    stopping.set()
    await task
    return waiting / taken, spent / waiting


async def measure(number: int, jobs: int) -> dict[str, Any]:
    """Measure everything on a separate product."""
    texts = Texts()
    with product() as running:
        async with running.redis() as client:
            empty, before = await used(client), await cpu(client)
            await fill(running, _NAMESPACE, number, texts)
            stored = await cpu(client) - before
            whole, kinds = await used(client) - empty, await parts(client, _NAMESPACE)
            rate, each = await rebuild(client, _NAMESPACE, number)
            drained, of_job = await drain(running, client, texts, jobs)
    by_kind = {kind: round(size / number) for kind, size in kinds.most_common(6)}
    return {
        "memories": number,
        "bytes each": round(whole / number),
        "of these, keys by kind": by_kind,
        "of these, index and the rest": round((whole - sum(kinds.values())) / number),
        "Redis ms to store one": round(stored / number * 1000, 2),
        "index rebuilt, memories a second": round(rate),
        "Redis ms to index one again": round(each * 1000, 2),
        "jobs a second of one stream, vectors for nothing": round(drained),
        "Redis ms of such a job": round(of_job * 1000, 2),
    }


def main() -> None:
    """Print a table and save it under results/."""
    given = [int(one) for one in sys.argv[1:]]
    found = asyncio.run(measure(*(given + [10_000, 4_000][len(given) :])))
    results.save("scale_constants", found)
    results.show("what docs/scaling.md reckons with", [{"constant": name, "measured": found[name]} for name in found])


if __name__ == "__main__":
    main()
