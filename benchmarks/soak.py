"""Whether the product leaks memory: resident memory under a steady load with a constant number of memories.

`python -m benchmarks.soak [MINUTES]`. Each round stores, searches, updates, lists, hands over a task and deletes what
is old. The memory of the processes is read every few seconds.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from statistics import fmean
from typing import Any

from benchmarks import results
from benchmarks.raw_client import RawClient
from benchmarks.service import Texts, clients, fill
from benchmarks.serving import Product, product

KEPT, EVERY, PAUSE = 1_000, 5.0, 0.5
_SETTLED = 0.25
"""Share of the time after which caches are full and memory should be constant."""


async def rounds(client: RawClient, texts: Texts, until: float) -> int:
    """Work at a steady pace; return the number of rounds."""
    mine, done = deque[str](), 0
    await client.call("register_agent", agent_type="custom")
    while time.monotonic() < until:
        mine.append((await client.call("store_memory", content=texts.turn(), wait=False))["memory_id"])
        await client.call("semantic_search", query=texts.question())
        await client.call("update_memory", memory_id=mine[-1], tags=[f"tag{done % 50}"])
        await client.call("get_agent_memories", limit=10)
        if done % 10 == 0:
            await client.call("distribute_task", description=texts.question())
            for task in (await client.call("get_pending_tasks"))["tasks"]:
                await client.call("complete_task", task_id=task["task_id"], lease_token=task["lease_token"], result={})
        if len(mine) > KEPT:
            await client.call("clear_memory", memory_ids=[mine.popleft()])
        done += 1
        await asyncio.sleep(PAUSE)
    return done


async def watch(running: Product, until: float) -> list[dict[str, float]]:
    """Read resident memory, in MiB, until the deadline."""
    began, seen = time.monotonic(), list[dict[str, float]]()
    while time.monotonic() < until:
        seen.append({"at": time.monotonic() - began, **running.resident()})
        await asyncio.sleep(EVERY)
    return seen


async def measure(minutes: float) -> dict[str, Any]:
    """Work and watch."""
    texts, until = Texts(), time.monotonic() + minutes * 60
    with product() as running:
        await fill(running, "soak", KEPT, texts)
        async with clients(running.url, 1, "soak") as (client,):
            done, seen = await asyncio.gather(rounds(client, texts, until), watch(running, until))
    return {"minutes": minutes, "rounds": done, "samples": seen}


def main() -> None:
    """Measure, print the last quarter compared with the second, and save it all as JSON."""
    measured = asyncio.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
    results.save("soak", measured)
    samples = measured["samples"]
    part = max(int(len(samples) * _SETTLED), 1)
    rows = [
        {"process": name, "second_quarter_mib": early, "last_quarter_mib": late, "ratio": late / early}
        for name in ("server", "sidecar", "redis")
        for early in [fmean(one[name] for one in samples[part : 2 * part])]
        for late in [fmean(one[name] for one in samples[-part:])]
    ]
    results.show(f"resident memory over {measured['minutes']:.0f} minutes, {measured['rounds']} rounds", rows)


if __name__ == "__main__":
    main()
