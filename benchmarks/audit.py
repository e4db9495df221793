"""The cost of the audit: stores and searches with and without it, entries sealed and verified per second.

Run it as `python -m benchmarks.audit REDIS_URL`, on a Redis that may be filled. It needs no sidecar.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from statistics import median
from typing import Any

from mcp import Client as McpClient

from memory_core.crypto.keyring import new_key
from memory_core.records.audit_entry import AuditEntry, new_entry
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.settings.settings import Settings
from memory_core.store.connection import connect
from memory_server.engine.redis_backend import Backend
from memory_server.mcp.server import build_server
from memory_server.runtime import Runtime
from memory_server.security.audit import reader
from memory_server.security.audit.auditor import Auditor
from memory_server.security.audit.chain import seal
from memory_server.security.audit.recorder import Recorder

CALLS, AT_ONCE, ROUNDS = 200, 16, 5
ENTRIES = 20_000
Call = Callable[[], Awaitable[Any]]


async def _cost(call: Call) -> tuple[float, float]:
    """Calls per second with this many in parallel, and milliseconds of this process's CPU per call."""
    left = iter(range(CALLS))

    async def some() -> None:
        for _ in left:
            await call()

    begun, spent = time.perf_counter(), time.process_time()
    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return CALLS / (time.perf_counter() - begun), (time.process_time() - spent) / CALLS * 1000


@contextmanager
def _silent(recorder: Recorder, auditor: Auditor, backend: Backend) -> Generator[None]:
    """Leave out sealing and the entries of reads and refusals. The signed entries of changes stay."""
    recorder.add = _ignore_entry
    auditor.noticed = _ignore
    was, backend.on_audited = backend.on_audited, _ignore
    try:
        yield
    finally:
        delattr(recorder, "add")
        delattr(auditor, "noticed")
        backend.on_audited = was


def _ignore(namespace: str) -> None:
    """Do nothing."""


def _ignore_entry(namespace: str, entry: AuditEntry) -> None:
    """Do nothing."""


async def _throughput(url: str) -> None:
    limits: Any = {"calls_per_second": 1e6, "burst": 1_000_000}
    runtime = Runtime(Settings.load(redis_url=url, master_key=new_key(), namespace=f"bench-{new_id()}", limits=limits))
    async with runtime.running(), McpClient(build_server(runtime)) as client:
        service = await runtime.service()
        calls: dict[str, Call] = {
            "store_memory": lambda: client.call_tool("store_memory", {"content": f"Fact {new_id()}.", "wait": False}),
            "semantic_search": lambda: client.call_tool("semantic_search", {"query": "fact", "mode": "keyword"}),
            "retrieve_memory": lambda: client.call_tool("retrieve_memory", {"memory_id": new_id()}),
        }
        for name, call in calls.items():
            await _cost(call)
            audited: list[tuple[float, float]] = []
            silent: list[tuple[float, float]] = []
            for _ in range(ROUNDS):
                audited.append(await _cost(call))
                with _silent(runtime.recorder, service.auditor, service.backend):
                    silent.append(await _cost(call))
            rate = median(one[0] / other[0] for one, other in zip(audited, silent, strict=True))
            cpu = median(one[1] / other[1] for one, other in zip(audited, silent, strict=True))
            spent = f"{median(one[1] for one in audited):.2f} ms of CPU, without {median(one[1] for one in silent):.2f}"
            print(f"{name}: {median(one[0] for one in audited):.0f}/s, ratio {rate:.3f}; {spent}, ratio {cpu:.3f}")


async def _sealing(url: str) -> None:
    namespace = f"bench-{new_id()}"
    runtime = Runtime(Settings.load(redis_url=url, master_key=new_key(), namespace=namespace))
    async with runtime.running(), connect(url) as client:
        service = await runtime.service()
        backend, keys, recorder = service.backend, Keys(namespace), Recorder()
        await backend.client()
        with _silent(Recorder(), service.auditor, backend):
            begun, spent = time.perf_counter(), time.process_time()
            for _ in range(ENTRIES // 10_000):
                for _ in range(10_000):
                    recorder.add(namespace, new_entry("ann", "semantic_search", [new_id()] * 10, "http 127.0.0.1"))
                for batch in recorder.batches():
                    await service.auditor._write(batch)  # pyright: ignore[reportPrivateUsage]
                    recorder.done(batch)
            _print_rate("written", begun, spent)
            begun, spent = time.perf_counter(), time.process_time()
            assert await seal(backend, namespace)
            _print_rate("sealed", begun, spent)
            begun, spent = time.perf_counter(), time.process_time()
            report = await reader.check(client, keys, backend.keyring)
            assert report.ok
            assert report.sealed_to == ENTRIES
            _print_rate("verified", begun, spent)
            used = await client.memory_usage(keys.audit, samples=0)
            print(f"memory: {used / ENTRIES:.0f} bytes an entry with 10 ids")


def _print_rate(what: str, begun: float, spent: float) -> None:
    wall, cpu = time.perf_counter() - begun, time.process_time() - spent
    print(f"{what}: {ENTRIES / wall:.0f} entries/s, {cpu / ENTRIES * 1e6:.0f} us of CPU each")


async def _main(url: str) -> None:
    await _throughput(url)
    await _sealing(url)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
