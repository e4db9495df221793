"""How fast everything recovers after a process of the product was killed, with 10,000 memories.

`python -m benchmarks.recovery [MEMORIES]`. Redis: until a search by meaning finds the expected memory in a complete
answer; every earlier answer must be an error or partial. Server: from its restart until it answers. Sidecar: until
another sidecar has embedded its jobs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any

from benchmarks import results
from benchmarks.ingesting import drained, store_all
from benchmarks.raw_client import RawClient, Refused
from benchmarks.service import Texts, clients, fill
from benchmarks.serving import Product, product, serve
from benchmarks.sidecars import pinned, ready

ROUNDS, HELD, PATIENCE = 5, 60, 120.0
_NAMESPACE = "recovery"
_MARKED = "The lighthouse keeper of Skagen mends his nets on Thursdays."


async def until_found(client: RawClient, counts: Counter[str]) -> float:
    """Search until a complete answer has the expected memory; count the answers until then."""
    began = time.perf_counter()
    while time.perf_counter() - began < PATIENCE:
        try:
            answer = await client.call("semantic_search", query=_MARKED, limit=3)
        except Refused as refusal:
            counts[str(refusal)[:60]] += 1
        else:
            found = any(hit["memory"]["content"] == _MARKED for hit in answer["hits"])
            if found and not answer["partial"]:
                return time.perf_counter() - began
            counts["partial" if answer["partial"] else "WRONG: complete, without the expected memory"] += 1
        await asyncio.sleep(0.05)
    raise TimeoutError("it did not recover")


async def redis_killed(running: Product) -> tuple[float, Counter[str]]:
    """Kill Redis; return the seconds until everything is found again, and the answers in the meantime."""
    counts: Counter[str] = Counter()
    async with clients(running.url, 1, _NAMESPACE) as (client,):
        os.kill(running.state().redis_pid or 0, signal.SIGKILL)
        return await until_found(client, counts), counts


async def server_killed(running: Product) -> float:
    """Kill and restart the server; return the seconds from the start to the first correct answer."""
    running.server.kill()
    running.server.wait(10)
    began = time.perf_counter()
    server, url = await asyncio.to_thread(serve, running.data_dir)
    try:
        async with clients(url, 1, _NAMESPACE) as (client,):
            await until_found(client, Counter())
        return time.perf_counter() - began
    finally:
        server.terminate()
        server.wait(20)


async def sidecar_killed(running: Product, texts: Texts) -> float:
    """Kill one of two sidecars that holds jobs; return the seconds until all of these have vectors."""
    with pinned(running, [0]) as (pid,):
        await ready(running, 2)
        async with clients(running.url, 1, _NAMESPACE) as (client,):
            await store_all(client, (texts.turn() for _ in range(HELD)))
            os.kill(pid, signal.SIGKILL)
            began = time.perf_counter()
            await drained(client)
            return time.perf_counter() - began


async def measure(size: int) -> dict[str, Any]:
    """Measure all three, in rounds."""
    texts, taken, counts = Texts(), dict[str, list[float]](), Counter[str]()
    with product() as running:
        await fill(running, _NAMESPACE, size, texts)
        async with clients(running.url, 1, _NAMESPACE) as (client,):
            await client.call("store_memory", content=_MARKED)
        for _ in range(ROUNDS):
            seconds, answers = await redis_killed(running)
            counts += answers
            taken.setdefault("redis", []).append(seconds)
            taken.setdefault("sidecar", []).append(await sidecar_killed(running, texts))
        for _ in range(ROUNDS):
            taken.setdefault("server", []).append(await server_killed(running))
            server, url = await asyncio.to_thread(serve, running.data_dir)
            running = replace(running, server=server, url=url)
        running.server.terminate()
        running.server.wait(20)
    return {"memories": size, "seconds": taken, "answers": dict(counts)}


def main() -> None:
    """Measure, print the table and save it as JSON."""
    measured = asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
    results.save("recovery", measured)
    rows = [{"killed": name, **_spread(seconds)} for name, seconds in measured["seconds"].items()]
    results.show("seconds until all is well", rows)
    print("answers in the meantime:", measured["answers"])


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"least": ordered[0], "median": ordered[len(ordered) // 2], "most": ordered[-1]}


if __name__ == "__main__":
    main()
