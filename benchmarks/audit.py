"""What the audit costs: stores and searches with it and without, entries sealed and checked per second.

Run it as `python -m benchmarks.audit REDIS_URL`, on a Redis that may be filled; no sidecar is needed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from statistics import median
from typing import Any

from mcp import Client as McpClient

from memory_core.connection import connect
from memory_core.ids import new_id
from memory_core.keyring import new_key
from memory_core.keys import Keys
from memory_core.settings import Settings
from memory_server.app import build_server
from memory_server.auditing import trail
from memory_server.auditing.auditor import Auditor
from memory_server.auditing.recorder import Recorder
from memory_server.auditing.said import said
from memory_server.auditing.sealing import seal
from memory_server.runtime import Runtime

CALLS, AT_ONCE, ROUNDS = 200, 16, 5
ENTRIES = 20_000


async def _rate(call: Callable[[], Awaitable[Any]]) -> float:
    """Give calls per second, so many under way at a time."""
    left = iter(range(CALLS))

    async def some() -> None:
        for _ in left:
            await call()

    begun = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return CALLS / (time.perf_counter() - begun)


@contextmanager
def _silent(auditor: Auditor) -> Any:
    """Leave out entries of reads and refusals, and sealing; a Function's own entries stay."""
    was = Recorder.add, Auditor.noticed
    Recorder.add = lambda *_: None
    Auditor.noticed = lambda *_: None
    auditor._backend.on_audited = lambda _: None  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        Recorder.add, Auditor.noticed = was
        auditor._backend.on_audited = auditor.noticed  # pyright: ignore[reportPrivateUsage]


async def _throughput(url: str) -> None:
    limits: Any = {"calls_per_second": 1e6, "burst": 1_000_000}
    runtime = Runtime(Settings.load(redis_url=url, master_key=new_key(), namespace=f"bench-{new_id()}", limits=limits))
    async with runtime.running(), McpClient(build_server(runtime)) as client:
        service = await runtime.service()
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "store_memory": lambda: client.call_tool("store_memory", {"content": f"Fact {new_id()}.", "wait": False}),
            "semantic_search": lambda: client.call_tool("semantic_search", {"query": "fact", "mode": "keyword"}),
            "retrieve_memory": lambda: client.call_tool("retrieve_memory", {"memory_id": new_id()}),
        }
        for name, call in calls.items():
            await _rate(call)
            audited: list[float] = []
            silent: list[float] = []
            for _ in range(ROUNDS):
                audited.append(await _rate(call))
                with _silent(service.auditor):
                    silent.append(await _rate(call))
            ratio = median(one / other for one, other in zip(audited, silent, strict=True))
            print(f"{name}: {median(audited):.0f}/s, without {median(silent):.0f}/s, ratio {ratio:.3f}")


async def _sealing(url: str) -> None:
    namespace = f"bench-{new_id()}"
    runtime = Runtime(Settings.load(redis_url=url, master_key=new_key(), namespace=namespace))
    async with runtime.running(), connect(url) as client:
        backend, keys = (await runtime.service()).backend, Keys(namespace)
        await backend.client()
        auditor = Auditor(backend, Recorder())
        with _silent(auditor):
            begun = time.perf_counter()
            for _ in range(ENTRIES // 10_000):
                recorder = Recorder()
                for _ in range(10_000):
                    recorder.add(namespace, said("ann", "semantic_search", [new_id()] * 10, "http 127.0.0.1"))
                for batch in recorder.batches():
                    await auditor._write(batch)  # pyright: ignore[reportPrivateUsage]
            print(f"written: {ENTRIES / (time.perf_counter() - begun):.0f} entries/s")
            begun = time.perf_counter()
            await seal(backend, namespace)
            print(f"sealed: {ENTRIES / (time.perf_counter() - begun):.0f} entries/s")
            begun = time.perf_counter()
            report = await trail.check(client, keys, backend.keyring)
            assert report.ok
            print(f"verified: {report.entries / (time.perf_counter() - begun):.0f} entries/s")
            used = await client.memory_usage(keys.audit, samples=0)
            print(f"memory: {used / ENTRIES:.0f} bytes an entry with 10 ids")


async def _main(url: str) -> None:
    await _throughput(url)
    await _sealing(url)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
