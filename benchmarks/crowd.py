"""How much a crowd slows one agent's searches: 1,000 agents connected over HTTP, with 2,000 open waits.

`python -m benchmarks.crowd [AGENTS]` searches as one agent alone and with the crowd connected, in turn.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import Any

from benchmarks import results
from benchmarks.metrics import percentile
from benchmarks.raw_client import RawClient
from benchmarks.service import Texts, clients, fill
from benchmarks.serving import Product, product

ROUNDS, SEARCHES, WAITS, SIZE = 3, 200, 2, 2_000
_AT_ONCE = 50


@asynccontextmanager
async def waiting(running: Product, agents: int) -> AsyncGenerator[list[asyncio.Task[Any]]]:
    """Connect this many agents, each with two waits that nothing ends; yields the waits."""
    async with AsyncExitStack() as stack:
        gate = asyncio.Semaphore(_AT_ONCE)

        async def connect(number: int) -> RawClient:
            async with gate:
                address = f"{running.url}?agent=agent{number // WAITS}&namespace=crowd"
                return await stack.enter_async_context(RawClient(address))

        crowd = await asyncio.gather(*map(connect, range(agents * WAITS)))
        waits = [asyncio.create_task(one.call("wait_for_events", timeout_seconds=300, kinds=["task"])) for one in crowd]
        try:
            await asyncio.sleep(3.0)
            yield waits
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


async def search(running: Product, texts: Texts) -> list[float]:
    """Milliseconds of one agent's uncached searches, on a separate connection."""
    taken: list[float] = []
    async with clients(running.url, 1, "crowd") as (client,):
        for _ in range(SEARCHES):
            question, began = texts.question(), time.perf_counter()
            await client.call("semantic_search", query=question)
            taken.append((time.perf_counter() - began) * 1000)
    return taken


async def measure(agents: int) -> list[dict[str, Any]]:
    """Compare both in rounds."""
    texts, rows = Texts(), list[dict[str, Any]]()
    with product() as running:
        await fill(running, "crowd", SIZE, texts)
        await search(running, texts)
        for _ in range(ROUNDS):
            alone = await search(running, texts)
            async with waiting(running, agents) as waits:
                crowded = await search(running, texts)
                ended = [_outcome_of(wait) for wait in waits if wait.done()]
            row: dict[str, Any] = {"agents": agents, "open_waits": len(waits) - len(ended), "ended_early": len(ended)}
            for why, number in Counter(ended).items():
                print(f"{number} waits ended early: {why}")
            for name, taken in (("alone", alone), ("crowd", crowded)):
                row |= {f"{name}_p50_ms": percentile(taken, 0.5), f"{name}_p99_ms": percentile(taken, 0.99)}
            rows.append(row | {"p99_ratio": row["crowd_p99_ms"] / row["alone_p99_ms"]})
    return rows


def _outcome_of(wait: asyncio.Task[Any]) -> str:
    return str(wait.exception() or wait.result())[:120]


def main() -> None:
    """Measure, print the rounds and their median, and save them as JSON."""
    rows = asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000))
    results.save("crowd", rows)
    results.show(
        "searches with a crowd connected", [*rows, {name: median(row[name] for row in rows) for name in rows[0]}]
    )


if __name__ == "__main__":
    main()
