"""How long a store takes at each durability level, with 1 and 8 clients, through the use case on a separate Redis."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.metrics import percentile
from memory_core.errors import MemoryServiceError
from memory_core.records.memory import Priority
from memory_core.settings.settings import Settings
from memory_core.store.connection import connect
from memory_server.contract.arguments import StoreArguments
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.local.binaries import find_redis
from memory_server.memories.store import store_memory
from memory_server.service import Service

CLIENTS = (1, 8)
SECONDS = 10.0
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Case:
    """A policy of the append-only file, with or without a replica, and what is stored."""

    fsync: str
    priority: Priority
    replica: bool = False


CASES = (
    Case("everysec", Priority.MEDIUM),
    Case("everysec", Priority.CRITICAL),
    Case("everysec", Priority.CRITICAL, replica=True),
    Case("always", Priority.MEDIUM),
    Case("always", Priority.CRITICAL),
    Case("always", Priority.CRITICAL, replica=True),
)


async def main() -> None:
    """Measure each case and print a table."""
    table = Table("appendfsync", "priority", "replica", "durability", "clients", "p50 ms", "p99 ms", "stores/s")
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="rm-durability-") as folder, _servers(Path(folder), case) as url:
            async with Service(Settings.load(redis_url=url)).running() as service:
                await _until_replicated(url, case)
                await _store(service, "warm", case)
                for clients in CLIENTS:
                    levels, times = await _measure(service, case, clients)
                    figures = (f"{percentile(times, share) * 1000:.1f}" for share in (0.5, 0.99))
                    rate = f"{len(times) / SECONDS:.0f}"
                    named = (case.fsync, case.priority.value, "yes" if case.replica else "no", ", ".join(levels))
                    table.add_row(*named, str(clients), *figures, rate)
    Console(width=120).print(table)


async def _measure(service: Service, case: Case, clients: int) -> tuple[list[str], list[float]]:
    """Store for a while; return the reported levels and the seconds of each store."""
    levels: set[str] = set()
    times: list[float] = []
    numbers, ends = itertools.count(), time.perf_counter() + SECONDS

    async def work(client: int) -> None:
        while (started := time.perf_counter()) < ends:
            levels.add(await _store(service, f"{client}", case, next(numbers)))
            times.append(time.perf_counter() - started)

    await asyncio.gather(*map(work, range(clients)))
    return sorted(levels), times


async def _store(service: Service, client: str, case: Case, number: int = 0) -> str:
    text = f"The harbour master of port {number} told client {client} that no boat may leave before the tide turns."
    new = StoreArguments(content=text, priority=case.priority, wait=False)
    return (await store_memory(service, RequestContext(Caller("bench", f"agent-{client}")), new)).durability


async def _until_replicated(url: str, case: Case) -> None:
    """Wait until the replica follows."""
    ends = time.monotonic() + _PATIENCE
    async with connect(url) as client:
        while case.replica and (await client.info("replication")).get("slave0", {}).get("state") != "online":
            if time.monotonic() > ends:
                raise MemoryServiceError("the replica does not follow")
            await asyncio.sleep(0.05)


@contextmanager
def _servers(folder: Path, case: Case) -> Generator[str]:
    """Run a Redis, and optionally a replica; yield its URL."""
    ports = [_free_port(), _free_port()]
    follow: list[Sequence[str]] = [(), ("--replicaof", f"127.0.0.1 {ports[0]}", "--repl-diskless-sync-delay", "0")]
    running = [_start(folder / str(port), port, case.fsync, more) for port, more in zip(ports, follow, strict=True)]
    try:
        if not case.replica:
            running[1].kill()
        yield f"redis://127.0.0.1:{ports[0]}/0"
    finally:
        for process in running:
            process.kill()
            process.wait()


def _start(folder: Path, port: int, fsync: str, more: Sequence[str]) -> subprocess.Popen[bytes]:
    folder.mkdir()
    found = find_redis()
    command = [found.server, "--port", str(port), "--dir", folder, "--save", "", "--appendonly", "yes"]
    command += ["--appendfsync", fsync, "--loadmodule", found.module, *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    ends = time.monotonic() + _PATIENCE
    while not _listens(port):
        if time.monotonic() > ends or process.poll() is not None:
            raise MemoryServiceError("Redis does not start")
        time.sleep(0.05)
    return process


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    asyncio.run(main())
