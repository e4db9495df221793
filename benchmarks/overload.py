"""How ten times as many agents as slots affect the admitted calls, and the memory of the processes.

Agents store and search without pause. First there are as many agents as slots, then ten times as many: those that wait
for the given retry time, and those that retry at once. Stores and searches do not wait for a sidecar. The rounds
alternate, because other work on the machine affects all of them. Patience is short, so that a burst ends soon.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.metrics import percentile
from benchmarks.raw_client import RawClient, Refused
from benchmarks.serving import Product, product
from memory_core.settings.settings import Settings

ROUNDS, SECONDS, WARM_SECONDS, PATIENCE_SECONDS = 3, 8.0, 5.0, 2.0
_SUBJECTS = ("harbour", "tide", "lighthouse", "ferry", "storm", "anchor", "compass", "island")
_numbers = count()


@dataclass(slots=True)
class LoadResult:
    """Seconds of each admitted call, the number of refused ones, and the peak memory of each process, in MiB."""

    times: list[float] = field(default_factory=list[float])
    refused: int = 0
    memory: dict[str, int] = field(default_factory=dict[str, int])


async def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    slots = Settings.load().limits.calls_at_once
    loads = {
        "as many as slots": (slots, True),
        "10 x, retry as advised": (10 * slots, True),
        "10 x, at once": (10 * slots, False),
    }
    seen: dict[str, list[LoadResult]] = {name: [] for name in loads}
    os.environ["MEMORY_LIMITS__PATIENCE_SECONDS"] = str(PATIENCE_SECONDS)
    with product() as running:
        for _ in range(rounds):
            for name, (agents, patient) in loads.items():
                seen[name].append(await _load(running, agents, patient=patient, seconds=SECONDS))
    table = Table(
        "agents",
        "let in/s",
        "p50 ms",
        "to usual",
        "p99 ms",
        "to usual",
        "turned away/s",
        "MiB: server",
        "Redis",
        "sidecar",
    )
    usual = seen["as many as slots"]
    for name, of_rounds in seen.items():
        table.add_row(name, *_row(of_rounds, usual))
    Console(width=120).print(table)


def _row(of_rounds: Sequence[LoadResult], usual: Sequence[LoadResult]) -> list[str]:
    """The medians of the rounds, of their ratios to the usual load of the same round, and the peak memory."""
    cells = [f"{median(len(one.times) for one in of_rounds) / SECONDS:.0f}"]
    for share in (0.5, 0.99):
        cells.append(f"{median(percentile(one.times, share) for one in of_rounds) * 1000:.0f}")
        pairs = zip(of_rounds, usual, strict=True)
        ratios = [percentile(one.times, share) / percentile(base.times, share) for one, base in pairs]
        cells.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    cells.append(f"{median(one.refused for one in of_rounds) / SECONDS:.0f}")
    return cells + [str(max(one.memory[name] for one in of_rounds)) for name in ("server", "redis", "sidecar")]


async def _load(running: Product, agents: int, *, patient: bool, seconds: float) -> LoadResult:
    """Run agents for a while. Recording starts after the server had time to adapt."""
    seen, begins = LoadResult(), time.perf_counter() + WARM_SECONDS
    ends = begins + seconds

    async def work(client: RawClient) -> None:
        while (started := time.perf_counter()) < ends:
            try:
                await _call(client)
            except Refused as error:
                if error.error.get("code") != "overloaded":
                    raise
                seen.refused += started > begins
                await asyncio.sleep(error.error["retry_after"] if patient else 0)
                continue
            if started > begins:
                seen.times.append(time.perf_counter() - started)

    async with AsyncExitStack() as opened:
        namespace = f"load-{next(_numbers)}"  # a namespace that grew under the last load would be slower to search
        urls = [f"{running.url}?agent=agent-{number}&namespace={namespace}" for number in range(agents)]
        clients = [await opened.enter_async_context(RawClient(url)) for url in urls]
        watching = asyncio.create_task(_watch(running, seen))
        await asyncio.gather(*map(work, clients))
        watching.cancel()
    return seen


async def _call(client: RawClient) -> None:
    subject = random.choice(_SUBJECTS)
    if random.random() < 0.5:
        text = f"The {subject} of town number {next(_numbers)} is looked after by its keeper."
        await client.call("store_memory", content=text, wait=False, ttl_seconds=3600)
    else:
        await client.call("semantic_search", query=f"who looks after the {subject}?", mode="keyword", limit=5)


async def _watch(running: Product, seen: LoadResult) -> None:
    """Read the memory of all processes every half second."""
    while True:
        for name, resident in running.resident().items():
            seen.memory[name] = max(seen.memory.get(name, 0), int(resident))
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    asyncio.run(main())
