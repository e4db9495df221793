"""Stores and searches per second through MCP with 1, 8 and 64 clients, and the stages of a search.

Each figure has a baseline from the same run: a tool that does nothing, and the raw FT.SEARCH of the same query.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.evalset import load
from benchmarks.metrics import percentile
from benchmarks.raw_client import RawClient, Refused
from benchmarks.serving import Product, product
from memory_core.records.keys import Keys
from memory_core.records.vectors import to_stored
from memory_core.settings.settings import VectorStoreSettings

CLIENTS = (1, 8, 64)
SIZES = (1_000, 10_000)
SECONDS = 4.0
ROUNDS = 5
_FILL_AT_ONCE = 200
Call = Callable[[RawClient], Awaitable[object]]


class Texts:
    """Turns and questions of real conversations, combined so that none is repeated."""

    def __init__(self, seed: int = 7) -> None:
        conversations = [one for name in ("locomo", "realtalk") for one in load(name)]
        self._turns = [memory["text"] for one in conversations for memory in one.memories]
        self._questions = [question.text for one in conversations for question in one.questions]
        self._random = random.Random(seed)
        self._number = itertools.count()

    def turn(self) -> str:
        """A text of two turns, different from all before it."""
        first, second = self._random.sample(self._turns, 2)
        return f"{first} {second} ({next(self._number)})"

    def question(self) -> str:
        """An uncached question."""
        return f"{self._random.choice(self._questions)} {next(self._number)}"


@asynccontextmanager
async def clients(url: str, count: int, namespace: str) -> AsyncGenerator[list[RawClient]]:
    """Connect several clients of one agent."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(RawClient(f"{url}?agent=bench&namespace={namespace}")) for _ in range(count)
        ]


async def fill(running: Product, namespace: str, size: int, texts: Texts) -> None:
    """Store memories with supplied vectors, as scattered as real ones, until there are `size`."""
    generator = np.random.default_rng(size)
    centres = generator.normal(size=(200, 384))
    async with clients(running.url, 1, namespace) as (client,):
        have = (await client.call("memory_stats"))["total"]
        while have < size:
            count = min(_FILL_AT_ONCE, size - have)
            vectors = centres[generator.integers(0, 200, count)] + generator.normal(size=(count, 384))
            operations = [
                {"op": "store_memory", "content": texts.turn(), "memory_type": "embedding", "vector": vector.tolist()}
                for vector in vectors
            ]
            answer = await client.call("batch_operations", operations=operations)
            failed = [item for item in answer["results"] if not item["ok"]]
            assert not failed, failed[0]
            have += count


async def rate(pool: list[RawClient], call: Call, seconds: float) -> tuple[float, list[float], int]:
    """Let all clients call without pause; return calls per second, each call's milliseconds, and the number refused."""
    taken: list[float] = []
    refused = 0
    until = time.perf_counter() + seconds

    async def work(client: RawClient) -> None:
        nonlocal refused
        while time.perf_counter() < until:
            started = time.perf_counter()
            try:
                await call(client)
            except Refused:
                refused += 1
            else:
                taken.append((time.perf_counter() - started) * 1000)

    started = time.perf_counter()
    await asyncio.gather(*map(work, pool))
    return len(taken) / (time.perf_counter() - started), taken, refused


def _calls(texts: Texts) -> Iterator[tuple[str, Call]]:
    cached = texts.question()
    yield "nothing", lambda client: client.call("list_agents", agent_types=["gemini"])
    yield "search, cached", lambda client: client.call("semantic_search", query=cached)
    yield "search", lambda client: client.call("semantic_search", query=texts.question())
    yield "search, words alone", lambda client: client.call("semantic_search", query=texts.question(), mode="keyword")
    yield "store, no wait", lambda client: client.call("store_memory", content=texts.turn(), wait=False)
    yield "store", lambda client: client.call("store_memory", content=texts.turn())


async def raw_search(running: Product, namespace: str) -> list[float]:
    """Milliseconds of the bare KNN query of a search, on a separate connection."""
    query = to_stored(np.random.default_rng(1).normal(size=384).astype(np.float32), VectorStoreSettings().model)
    taken: list[float] = []
    async with running.redis() as redis:
        for _ in range(200):
            started = time.perf_counter()
            await redis.execute_command(
                "FT.SEARCH", Keys(namespace).index_alias, "*=>[KNN 40 @vec $v AS distance]",
                "PARAMS", 2, "v", query, "DIALECT", 2, "NOCONTENT", "SORTBY", "distance", "LIMIT", 0, 40,
            )  # fmt: skip
            taken.append((time.perf_counter() - started) * 1000)
    return taken


async def measure(running: Product, sizes: tuple[int, ...], texts: Texts) -> list[dict[str, Any]]:
    """Measure every call at every size and number of clients, in rounds that alternate between the calls."""
    rows: list[dict[str, Any]] = []
    for size in sizes:
        namespace = f"size-{size}"
        await fill(running, namespace, size, texts)
        raw = await raw_search(running, namespace)
        rows.append({"memories": size, "clients": 1, "call": "raw FT.SEARCH KNN", **_latency(raw)})
        for count in CLIENTS:
            async with clients(running.url, count, namespace) as pool:
                rows += await _rounds(pool, size, texts)
    return rows


async def _rounds(pool: list[RawClient], size: int, texts: Texts) -> list[dict[str, Any]]:
    rates: dict[str, list[float]] = {}
    taken: dict[str, list[float]] = {}
    refused: dict[str, int] = {}
    for _ in range(ROUNDS):
        for name, call in _calls(texts):
            per_second, milliseconds, count = await rate(pool, call, SECONDS / ROUNDS)
            refused[name] = refused.get(name, 0) + count
            rates.setdefault(name, []).append(per_second)
            taken.setdefault(name, []).extend(milliseconds)
    return [
        {
            "memories": size,
            "clients": len(pool),
            "call": name,
            **_latency(taken[name]),
            "per_second": round(median(rates[name]), 1),
            "least": round(min(rates[name]), 1),
            "most": round(max(rates[name]), 1),
            "refused": refused[name],
        }
        for name in rates
    ]


def _latency(milliseconds: list[float]) -> dict[str, float]:
    return {f"p{share}_ms": round(percentile(milliseconds, share / 100), 2) for share in (50, 95, 99)}


def main() -> None:
    """Measure, print the table and save it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    sizes = tuple(parser.parse_args().sizes)
    texts = Texts()
    with product() as running:
        rows = asyncio.run(measure(running, sizes, texts))
    results.save("service", rows)
    results.show("through MCP over HTTP, a raw client", rows)


if __name__ == "__main__":
    main()
