"""How soon waiting agents wake, and what a thousand of them cost: `python -m benchmarks.events`.

A thousand callers wait in this process, on the service of the HTTP server, so the figures do not include a thousand
HTTP clients on the same cores. Fifty more wait over HTTP.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from mcp import Client as McpClient

from benchmarks import results
from benchmarks.mcp_client import call
from benchmarks.serving import product, service_on
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_server.contract.arguments import WaitArguments
from memory_server.contract.events import EventsAnswer
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.events.waiting import wait_for_events
from memory_server.service import Service

WAITERS = int(os.environ.get("BENCH_WAITERS", "1000"))
HTTP_CLIENTS = 50
SAMPLES = 300
IDLE_SECONDS = 10.0
NAMESPACE = "bench-events"
QUERY = "Where do the ships leave from?"


async def main() -> None:
    """Measure everything and print a table."""
    with product() as served:
        redis = served.redis()
        async with service_on(served) as service:
            rows = [*await _in_process(service, redis), *await _matches(service, served.url)]
        rows += await _over_http(served.url, redis)
        await redis.aclose()
    results.save("events", dict(rows))
    print("\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]))


Waits = dict[str, asyncio.Task[EventsAnswer]]


def _wait(service: Service, names: Sequence[str], args: WaitArguments) -> Waits:
    return {
        name: asyncio.create_task(wait_for_events(service, RequestContext(Caller(NAMESPACE, name)), args))
        for name in names
    }


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def _emit(redis: Client, to: str, *, kind: str = "task", scope: str = "") -> None:
    event = {"kind": kind, "op": "assigned", "id": "subject", "by": "", "scope": scope, "to": to}
    await redis.xadd(Keys(NAMESPACE).events, event)


async def _in_process(service: Service, redis: Client) -> list[tuple[str, str]]:
    args = WaitArguments(timeout_seconds=300)
    names = [f"agent{number}" for number in range(WAITERS)]
    waits = _wait(service, names, args)
    await _until(lambda: service.events.count(NAMESPACE) == WAITERS)

    cpu = time.process_time()
    await asyncio.sleep(IDLE_SECONDS)
    idle = (time.process_time() - cpu) / IDLE_SECONDS

    async def wake(number: int) -> float:
        name = names[number % WAITERS]
        started = time.perf_counter()
        await _emit(redis, name)
        await waits[name]
        took = time.perf_counter() - started
        waits.update(_wait(service, [name], args))
        await _until(lambda: service.events.count(NAMESPACE) == WAITERS)
        return took

    cpu = time.process_time()
    addressed = [await wake(number) for number in range(SAMPLES)]
    woken_cpu = (time.process_time() - cpu) / SAMPLES

    cpu = time.process_time()
    for _ in range(1000):
        await _emit(redis, "", kind="memory", scope="o:nobody")
    await asyncio.sleep(0.2)
    unconcerned = (time.process_time() - cpu) / 1000

    started = time.perf_counter()
    cpu = time.process_time()
    await _emit(redis, "", kind="agent")
    await asyncio.gather(*waits.values())
    everybody, everybody_cpu = time.perf_counter() - started, time.process_time() - cpu
    return [
        (f"{WAITERS} waiting, nothing happening: processor time", f"{idle:.2%} of a core"),
        ("an event for one of them, until it has its answer, p50 / p99", _percentiles(addressed)),
        ("processor time of such a wake and of waiting again", f"{woken_cpu * 1000:.1f} ms"),
        ("processor time of an event that concerns none, sending it included", f"{unconcerned * 1e6:.0f} µs"),
        (f"an event for all {WAITERS}, until the last has its answer", f"{everybody * 1000:.0f} ms"),
        ("processor time of that, for each", f"{everybody_cpu / WAITERS * 1e6:.0f} µs"),
    ]


async def _matches(service: Service, url: str) -> list[tuple[str, str]]:
    """Give every agent a standing query, store memories far from it, then memories close to it."""
    names = [f"agent{number}" for number in range(WAITERS)]
    waits = _wait(service, names, WaitArguments(timeout_seconds=300, query=QUERY, kinds=["match"], min_score=0.45))
    await _until(lambda: service.events.count(NAMESPACE) == WAITERS)
    async with McpClient(f"{url}?agent=writer&namespace={NAMESPACE}") as writer:
        cpu = time.process_time()
        for number in range(20):
            await call(writer, "store_memory", content=f"Tomatoes want sun, {number}.", visibility="public")
        far = (time.process_time() - cpu) / 20
        assert not any(wait.done() for wait in waits.values())
        await call(writer, "store_memory", content="The ships leave from the harbour.", visibility="public")
        started = time.perf_counter()
        await asyncio.gather(*waits.values())
        close = time.perf_counter() - started
    return [
        (f"{WAITERS} standing queries, a memory far from them: processor time", f"{far * 1000:.1f} ms"),
        ("a memory close to all of them: from its store's answer to the last wait's", f"{close * 1000:.0f} ms"),
    ]


async def _over_http(url: str, redis: Client) -> list[tuple[str, str]]:
    names = [f"http{number}" for number in range(HTTP_CLIENTS)]
    async with AsyncExitStack() as parts:
        clients = {
            name: await parts.enter_async_context(McpClient(f"{url}?agent={name}&namespace={NAMESPACE}"))
            for name in names
        }

        async def wait(name: str, cursor: str | None = None) -> str:
            if cursor is None:
                cursor = (await call(clients[name], "wait_for_events", timeout_seconds=0))["cursor"]
            answer = await call(clients[name], "wait_for_events", cursor=cursor, timeout_seconds=300)
            return answer["cursor"]

        waits = {name: asyncio.create_task(wait(name)) for name in names}
        await asyncio.sleep(2)
        took: list[float] = []
        for number in range(SAMPLES):
            name = names[number % HTTP_CLIENTS]
            started = time.perf_counter()
            await _emit(redis, name)
            cursor = await waits[name]
            took.append(time.perf_counter() - started)
            waits[name] = asyncio.create_task(wait(name, cursor))
            await asyncio.sleep(0.02)
        await _emit(redis, "", kind="agent")
        await asyncio.gather(*waits.values())
    return [(f"{HTTP_CLIENTS} waiting over HTTP, an event for one of them, p50 / p99", _percentiles(took))]


def _percentiles(seconds: Sequence[float]) -> str:
    points = statistics.quantiles(seconds, n=100)
    return f"{points[49] * 1000:.1f} / {points[98] * 1000:.1f} ms"


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
