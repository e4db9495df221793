"""How much more two sidecars embed than one, each pinned to one core. `python -m benchmarks.sidecars`.

The product's own sidecar is paused. Each round stores the same number of texts while no sidecar embeds, then lets one
or two sidecars work through them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks import results
from benchmarks.ingesting import drained, store_all
from benchmarks.raw_client import RawClient
from benchmarks.service import Texts, clients
from benchmarks.serving import Product, product
from memory_core.store import sidecar as records

ROUNDS, TEXTS, TURNS = 5, 800, 4
_EMBEDDER = str(Path(sys.executable).parent / "redis-memory-embedder")


@contextmanager
def pinned(running: Product, cores: Sequence[int]) -> Generator[list[int]]:
    """Run a paused sidecar on each core; yields their processes."""
    command = [_EMBEDDER, "--threads", "1"]
    environment = os.environ | {"REDIS_URL": running.redis_url}
    started = [
        subprocess.Popen(["taskset", "--cpu-list", str(core), *command], env=environment, stderr=subprocess.DEVNULL)
        for core in cores
    ]
    try:
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(30)


async def ready(running: Product, number: int) -> None:
    """Wait until this many sidecars report ready, in addition to the paused one."""
    async with running.redis() as redis:
        while sum(one.state == "ready" for one in await records.living(redis)) < number:
            await asyncio.sleep(0.2)


async def embed_with(client: RawClient, running: Product, cores: Sequence[int], texts: Texts) -> float:
    """Store texts and let that many sidecars embed them; return texts per second."""
    with pinned(running, cores) as pids:
        await ready(running, len(cores))
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for _ in range(0, TEXTS, 200):
            await store_all(client, (" ".join(texts.turn() for _ in range(TURNS)) for _ in range(200)))
        began = time.perf_counter()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        await drained(client)
        return TEXTS / (time.perf_counter() - began)


async def measure() -> list[dict[str, float]]:
    """Compare one and two, in rounds."""
    texts, rows = Texts(), list[dict[str, float]]()
    with product() as running:
        own = running.state().sidecar_pid or 0
        os.kill(own, signal.SIGSTOP)
        try:
            async with clients(running.url, 1, "sidecars") as (client,):
                await asyncio.sleep(records.LIFETIME_SECONDS)
                for number in range(ROUNDS):
                    one = await embed_with(client, running, [number % 2], texts)
                    two = await embed_with(client, running, [0, 1], texts)
                    rows.append({"one_per_second": one, "two_per_second": two, "ratio": two / one})
        finally:
            os.kill(own, signal.SIGCONT)
    return rows


def main() -> None:
    """Measure, print the rounds and their median, and save them as JSON."""
    rows = asyncio.run(measure())
    results.save("sidecars", rows)
    results.show("texts embedded a second", [*rows, {name: median(row[name] for row in rows) for name in rows[0]}])


if __name__ == "__main__":
    main()
