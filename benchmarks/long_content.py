"""Long contents and batches: 1 MiB stored while others search, and 500 operations in one call or one by one."""

from __future__ import annotations

import asyncio
import random
import statistics
import time

from mcp import Client
from mcp_types import CallToolResult
from rich.console import Console

from benchmarks.mcp_client import call
from benchmarks.metrics import percentile
from benchmarks.serving import Product, product
from memory_core.records.memory import compress

MIB = 1 << 20
_SEARCHES = 200
_OPERATIONS = 500
_ROUNDS = 3


WORDS = """the of and to in that was his he it with is for as had you not be her on at by which have or from this him
but all she they were my are me one their so an said them we who would been will no when there if more out up into do
any your what has man could other than our some very time upon about may its only now like little then can should made
did us such great before must these two see know over much down after first good men own never most old shall day where
those came come himself way work life without go make well through being long say might how am too under long last water
house river evening garden letter window captain morning silver mountain question village answer market winter summer
engine station number picture doctor journey street kitchen thunder harbour lantern meadow orchard machine signal
""".split()


def text(size: int, seed: int) -> str:
    """Make `size` characters of sentences of common English words."""
    chance = random.Random(seed)
    lines: list[str] = []
    length = 0
    while length < size:
        line = " ".join(chance.choices(WORDS, k=chance.randint(5, 18))).capitalize() + ". "
        lines.append(line)
        length += len(line)
    return "".join(lines)[:size]


async def search_latencies(client: Client, count: int, stop: asyncio.Event | None = None) -> list[float]:
    """Milliseconds of hybrid searches, each with a new query."""
    latencies: list[float] = []
    for number in range(count):
        started = time.perf_counter()
        await client.call_tool("semantic_search", {"query": f"note {number} about the {text(12, number)}"})
        latencies.append((time.perf_counter() - started) * 1000)
        if stop and stop.is_set():
            break
    return latencies


async def store_a_mebibyte(running: Product, console: Console) -> None:
    """Time a store of 1 MiB until every chunk has its vector, while searches run."""
    reader_url, writer_url = (f"{running.url}?agent={agent}&namespace=long" for agent in ("reader", "writer"))
    async with Client(reader_url) as reader, Client(writer_url) as writer, running.redis() as redis:
        for number in range(200):
            await call(writer, "store_memory", content=text(200, number), visibility="public")
        idle = await search_latencies(reader, _SEARCHES)
        body, done = text(MIB, 1), asyncio.Event()
        searching = asyncio.create_task(search_latencies(reader, 100_000, done))
        started = time.perf_counter()
        stored = await call(writer, "store_memory", content=body, memory_type="document")
        acknowledged = time.perf_counter() - started
        await until_embedded(writer)
        ready = time.perf_counter() - started
        done.set()
        busy = await searching
        memory_id = stored["memory_id"]
        memory = (await call(writer, "retrieve_memory", memory_id=memory_id))["memory"]
        assert memory["content"] == body
        started = time.perf_counter()
        await writer.call_tool("update_memory", {"memory_id": memory_id, "tags": ["changed"]})
        retagged = time.perf_counter() - started
        await call(writer, "clear_memory", memory_ids=[memory_id])
        slow = await redis.slowlog_get(128)
    stalls = [entry["duration"] / 1000 for entry in slow if entry["command"].startswith(b"FCALL")]
    ratio = percentile(busy, 0.95) / percentile(idle, 0.95)
    console.print(
        f"1 MiB in {memory['pieces']} chunks: acknowledged after {acknowledged:.1f} s, "
        f"all vectors after {ready:.1f} s, its tags changed in {retagged:.1f} s"
    )
    console.print(
        f"searches: idle p50 {percentile(idle, 0.5):.0f} p95 {percentile(idle, 0.95):.0f} ms, meanwhile p50 "
        f"{percentile(busy, 0.5):.0f} p95 {percentile(busy, 0.95):.0f} ms over {len(busy)} (p95 ratio {ratio:.2f})"
    )
    console.print(f"Functions over 10 ms: {len(stalls)}, the longest {max(stalls, default=0):.1f} ms")
    console.print(f"body compressed {len(body.encode()) / len(compress(body)):.2f} : 1")


async def until_embedded(client: Client) -> None:
    """Wait until no text waits for its vector."""
    while True:
        result = await client.call_tool("memory_stats", {})
        assert isinstance(result, CallToolResult)
        if not (result.structured_content or {})["vector_backlog"]:
            return
        await asyncio.sleep(0.25)


async def batches(running: Product, console: Console) -> None:
    """Store the same number of short texts in one call and one by one, with default settings, in turn."""
    ratios: list[float] = []
    for number in range(_ROUNDS):
        async with Client(f"{running.url}?agent=one&namespace=batch-{number}") as client:
            texts = [text(150, 10_000 * number + n) for n in range(2 * _OPERATIONS)]
            started = time.perf_counter()
            for content in texts[:_OPERATIONS]:
                await call(client, "store_memory", content=content)
            single = time.perf_counter() - started
            await until_embedded(client)
            operations = [{"op": "store_memory", "content": content} for content in texts[_OPERATIONS:]]
            started = time.perf_counter()
            answer = await call(client, "batch_operations", operations=operations)
            ratios.append(single / (time.perf_counter() - started))
            assert answer["succeeded"] == _OPERATIONS
            await until_embedded(client)
    console.print(
        f"{_OPERATIONS} stores in one batch are {statistics.median(ratios):.1f} times as fast as one by one "
        f"({min(ratios):.1f} to {max(ratios):.1f}, {_ROUNDS} rounds; a single store waits for its vector, "
        "a batch leaves jobs)"
    )


def main() -> None:
    """Measure both on a separate product."""
    console = Console(width=160)
    with product() as running:
        asyncio.run(store_a_mebibyte(running, console))
        asyncio.run(batches(running, console))


if __name__ == "__main__":
    main()
