"""The CPU cost of integrity codes in server and Redis: stores and searches with and without a key."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks.poisoning import QUERIES
from memory_core.crypto.integrity import Integrity
from memory_core.crypto.keyring import Keyring, Secret
from memory_core.settings.settings import Settings
from memory_server.contract.arguments import SearchArguments, StoreArguments
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.local.stop import stop
from memory_server.memories.store import store_memory
from memory_server.search.search import semantic_search
from memory_server.service import Service

ROUNDS, STORES = 15, 100


async def _spent(service: Service) -> float:
    """CPU seconds of this process and of Redis so far."""
    client = await service.backend.client()
    used = await client.info("cpu")
    return time.process_time() + used["used_cpu_user_main_thread"] + used["used_cpu_sys_main_thread"]


async def _round(service: Service, request: RequestContext, number: int) -> tuple[float, float]:
    """Store and search; return the milliseconds of one of each."""
    started = await _spent(service)
    for index in range(STORES):
        content = f"{QUERIES[index % len(QUERIES)]}, asked for the {number * STORES + index}th time; " * 6
        memory = StoreArguments(content=content, tags=["a", "b"], context="thread", wait=False)
        await store_memory(service, request, memory)
    stored = await _spent(service)
    for query in QUERIES:
        await semantic_search(service, request, SearchArguments(query=query, mode="keyword"))
    return (stored - started) * 1000 / STORES, (await _spent(service) - stored) * 1000 / len(QUERIES)


async def _main() -> None:
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="redis-memory-bench-") as folder:
        settings = Settings.load(data_dir=Path(folder), quotas={"memories": 0, "pieces": 0})
        try:
            async with Service(settings).running() as service:
                await service.backend.client()
                sides = {"with": Integrity(Keyring([Secret(bytes(range(32)))])), "without": Integrity(Keyring())}
                rows: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
                for number in range(-1, ROUNDS):
                    for name, service.backend.integrity in sides.items():
                        row = await _round(service, RequestContext(Caller(f"codes-{name}", "alice")), number + 1)
                        rows[name] += [row] if number >= 0 else []
        finally:
            stop(Path(folder))
    for at, what in enumerate(("store", "search by words")):
        ratios = [one[at] / other[at] for one, other in zip(rows["with"], rows["without"], strict=True)]
        with_code, without = (statistics.median(row[at] for row in rows[name]) for name in sides)
        console.print(
            f"{what}: {with_code:.2f} ms with codes, {without:.2f} ms without; ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    asyncio.run(_main())
