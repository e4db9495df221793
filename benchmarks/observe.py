"""The cost of observability: stores and searches without metrics, with metrics scraped, and traced.

Run it as `python -m benchmarks.observe REDIS_URL`, on a Redis that may be filled. It needs no sidecar.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from statistics import median
from typing import Any

from mcp import Client as McpClient
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import Histogram

from memory_core.observe import tracing
from memory_core.records.ids import new_id
from memory_core.settings.settings import Settings
from memory_server.engine.counters import Counters
from memory_server.mcp.server import build_server
from memory_server.operations.stats.prometheus import exposition
from memory_server.operations.stats.redis_stats import Stocktaking
from memory_server.runtime import Runtime

CALLS, AT_ONCE, ROUNDS, SCRAPES, MEMORIES = 100, 8, 11, 200, 50
Call = Callable[[], Awaitable[Any]]


async def _cost(call: Call) -> float:
    """Milliseconds of this process's CPU per call, with this many in parallel."""
    left = iter(range(CALLS))

    async def some() -> None:
        for _ in left:
            await call()

    spent = time.process_time()
    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return (time.process_time() - spent) / CALLS * 1000


@contextmanager
def _uncounted() -> Generator[None]:
    """Count nothing."""
    kept = Counters.called, Counters.searched, Histogram.observe
    Counters.called = Counters.searched = Histogram.observe = _nothing  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        Counters.called, Counters.searched, Histogram.observe = kept


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


@asynccontextmanager
async def _uncounted_too() -> AsyncGenerator[None]:
    with _uncounted():
        yield


@asynccontextmanager
async def _traced() -> AsyncGenerator[None]:
    """Trace every call, to an exporter that discards."""
    tracing.use(BatchSpanProcessor(_DiscardingExporter()), "bench", "0")
    try:
        yield
    finally:
        await asyncio.to_thread(tracing.stop)


class _DiscardingExporter(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        """Discard."""
        return SpanExportResult.SUCCESS


async def _compare(name: str, call: Call, how: str, other: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    """Measure in turns, so that a slow machine slows both."""
    usual: list[float] = []
    others: list[float] = []
    for number in range(ROUNDS):
        for is_other in (False, True) if number % 2 else (True, False):
            if not is_other:
                usual.append(await _cost(call))
                continue
            async with other():
                others.append(await _cost(call))
    ratios = sorted(one / two for one, two in zip(others, usual, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    medians = f"{median(usual):.3f} ms of CPU without, {how} {median(others):.3f}"
    print(f"{name}: {medians}; ratio {median(ratios):.3f} (quartiles {low:.3f} to {high:.3f})")


async def _main(url: str) -> None:
    limits: Any = {"calls_per_second": 1e6, "burst": 1_000_000_000}
    runtime = Runtime(Settings.load(redis_url=url, namespace=f"bench-{new_id()}", limits=limits))
    async with runtime.running(), McpClient(build_server(runtime)) as client:
        service = await runtime.service()
        store = partial(client.call_tool, "store_memory")
        for number in range(MEMORIES):
            await store({"content": f"Fact number {number}.", "wait": False})
        calls: dict[str, Call] = {
            "retrieve_memory": lambda: client.call_tool("retrieve_memory", {"memory_id": new_id()}),
            "semantic_search": lambda: client.call_tool("semantic_search", {"query": "fact", "mode": "keyword"}),
            "store_memory": lambda: store({"content": f"Fact {new_id()}.", "wait": False}),
        }
        for name, call in calls.items():
            await _cost(call)
            await _compare(name, call, "uncounted", _uncounted_too)
            await _compare(name, call, "traced", _traced)
        stocktaking = Stocktaking()
        begun = time.perf_counter()
        stock = await stocktaking.stock(service)
        print(f"reading Redis: {(time.perf_counter() - begun) * 1000:.1f} ms, {stock.namespaces} namespaces")
        body, _ = exposition(runtime.counters, service, stock, "")
        spent = time.process_time()
        for _ in range(SCRAPES):
            exposition(runtime.counters, service, stock, "")
        print(f"a page: {(time.process_time() - spent) / SCRAPES * 1000:.2f} ms of CPU, {len(body)} bytes")

    begun, figures = time.perf_counter(), Counters()
    for _ in range(100_000):
        figures.called("store_memory", "ok", 0.004)
    print(f"counting a call: {(time.perf_counter() - begun) * 10:.2f} us")


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
