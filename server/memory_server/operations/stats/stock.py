"""Reads from Redis what is too dear to keep count of, at most once in some seconds however often it is asked for."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memory_core.errors import MemoryServiceError
from memory_core.records.keys import NAMESPACES, Keys
from memory_core.records.model import count_jobs
from memory_core.records.task import ENDED
from memory_core.redis_client import Client
from memory_core.store import sidecar
from memory_server.service import Service

KEEP_SECONDS = 5.0
DEADLINE_SECONDS = 2.0
MOST_NAMESPACES = 2000
"""Namespaces looked into at one reading; how many were left out is told."""
_AT_ONCE = 250
_STATES = ("starting", "ready", "stopping")


@dataclass(frozen=True, slots=True)
class Stock:
    """What Redis holds, summed over all namespaces. While Redis is away, `redis_up` alone says so."""

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
    """The last reading, which several askers share."""

    def __init__(self) -> None:
        self._last = Stock()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def stock(self, service: Service) -> Stock:
        """Give what was read lately, or read again; a Redis that is away or slow is told as one."""
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
    names = sorted(await client.smembers(NAMESPACES))
    living = Counter(status.state for status in await sidecar.living(client))
    sums: Counter[str] = Counter()
    for start in range(0, min(len(names), MOST_NAMESPACES), _AT_ONCE):
        sums.update(await _sums(client, names[start : min(start + _AT_ONCE, MOST_NAMESPACES)]))
    under_way = sums["leased"] + sums["retrying"]
    return Stock(
        redis_up=True,
        round_trip_seconds=took,
        redis=info,
        namespaces=len(names),
        uncounted=max(len(names) - MOST_NAMESPACES, 0),
        backlog=sums["jobs"],
        dead_jobs=sums["dead_jobs"],
        dead_tasks=sums["dead_tasks"],
        tasks={"queued": max(sums["open"] - under_way, 0), "leased": sums["leased"], "retrying": sums["retrying"]},
        ended={state: sums[state] for state in sorted(ENDED)},
        sidecars=dict.fromkeys(_STATES, 0) | living,
    )


async def _sums(client: Client, names: list[bytes]) -> Counter[str]:
    """Add up the lengths of the queues of some namespaces, in few round trips."""
    pipe, what = client.pipeline(transaction=False), ("dead_jobs", "dead_tasks", "leased", "retrying")
    for name in names:
        keys = Keys(name.decode())
        pipe.xlen(keys.dead_jobs)
        pipe.xlen(keys.dead_tasks)
        pipe.zcard(keys.leases)
        pipe.zcard(keys.delayed)
        pipe.hmget(keys.counters, ["open_tasks", *(f"tasks_{state}" for state in sorted(ENDED))])
    found, sums = await pipe.execute(), Counter[str]()
    sums["jobs"] = sum(await count_jobs(client, [Keys(name.decode()) for name in names]))
    for start in range(0, len(found), len(what) + 1):
        *lengths, counted = found[start : start + len(what) + 1]
        sums.update(dict(zip(what, lengths, strict=True)))
        sums.update({name: int(number or 0) for name, number in zip(("open", *sorted(ENDED)), counted, strict=True)})
    return sums
