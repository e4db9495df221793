"""Reads the metrics of Redis that are too expensive to count continuously, at most once every few seconds."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memory_core.errors import MemoryServiceError
from memory_core.records.keys import NAMESPACES, Keys
from memory_core.records.model import count_jobs
from memory_core.records.names import only_names
from memory_core.records.task import ENDED
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_core.store import sidecar
from memory_server.service import Service

KEEP_SECONDS = 5.0
DEADLINE_SECONDS = 2.0
MOST_NAMESPACES = 2000
"""Namespaces counted in one reading. `Stock.uncounted` is the number of the others."""
_AT_ONCE = 250
_STATES = ("starting", "ready", "stopping")


@dataclass(frozen=True, slots=True)
class Stock:
    """The contents of Redis, summed over all namespaces. If Redis is unavailable, only `redis_up` is meaningful."""

    redis_up: bool = False
    round_trip_seconds: float | None = None
    redis: dict[str, Any] = field(default_factory=dict[str, Any])
    namespaces: int = 0
    uncounted: int = 0
    backlog: int = 0
    dead_jobs: int = 0
    dead_tasks: int = 0
    tasks: Mapping[str, int] = field(default_factory=dict[str, int])
    ended: Mapping[str, int] = field(default_factory=dict[str, int])
    sidecars: Mapping[str, int] = field(default_factory=dict[str, int])


class Stocktaking:
    """The last reading, shared by all scrapes."""

    def __init__(self) -> None:
        self._last = Stock()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def stock(self, service: Service) -> Stock:
        """Return the last reading, or a new one if it is old. A slow Redis counts as unavailable."""
        async with self._reading:
            if time.monotonic() - self._read_at >= KEEP_SECONDS:
                try:
                    async with asyncio.timeout(DEADLINE_SECONDS):
                        self._last = await service.backend.read(_take)
                except (MemoryServiceError, TimeoutError):
                    self._last = Stock()
                self._read_at = time.monotonic()
        return self._last


async def _take(client: Client) -> Stock:
    started = time.perf_counter()
    await client.ping()
    took = time.perf_counter() - started
    info = await client.info()
    names = only_names(await client.smembers(NAMESPACES))
    living = Counter(status.state for status in await sidecar.living(client))
    sums: Counter[str] = Counter()
    for part in slices(names[:MOST_NAMESPACES], _AT_ONCE):
        sums.update(await _sums(client, part))
    return Stock(
        redis_up=True,
        round_trip_seconds=took,
        redis=info,
        namespaces=len(names),
        uncounted=max(len(names) - MOST_NAMESPACES, 0),
        backlog=sums["jobs"],
        dead_jobs=sums["dead_jobs"],
        dead_tasks=sums["dead_tasks"],
        tasks={
            "queued": max(sums["open"] - sums["leased"] - sums["retrying"], 0),
            "leased": sums["leased"],
            "retrying": sums["retrying"],
        },
        ended={state: sums[state] for state in sorted(ENDED)},
        sidecars=dict.fromkeys(_STATES, 0) | living,
    )


async def _sums(client: Client, names: Sequence[str]) -> Counter[str]:
    pipe, what = client.pipeline(transaction=False), ("dead_jobs", "dead_tasks", "leased", "retrying")
    for name in names:
        keys = Keys(name)
        pipe.xlen(keys.dead_jobs)
        pipe.xlen(keys.dead_tasks)
        pipe.zcard(keys.leases)
        pipe.zcard(keys.delayed)
        pipe.hmget(keys.counters, ["open_tasks", *(f"tasks_{state}" for state in sorted(ENDED))])
    found, sums = await pipe.execute(), Counter[str]()
    sums["jobs"] = sum(await count_jobs(client, [Keys(name) for name in names]))
    for *lengths, counted in slices(found, len(what) + 1):
        sums.update(dict(zip(what, lengths, strict=True)))
        sums.update({name: int(number or 0) for name, number in zip(("open", *sorted(ENDED)), counted, strict=True)})
    return sums
