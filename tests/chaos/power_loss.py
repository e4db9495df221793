"""Repeated power losses at each durability level: how many acknowledged writes are lost, and how old they are.

Only Redis and the use cases run, so a cut takes a second or two. Agents of this process store as fast as they can, the
power goes, Redis restarts from what was synced, and every acknowledged memory is looked up.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from redis.exceptions import BusyLoadingError
from support.embedder_fixtures import RedisServer
from support.redis_users import SERVER

from memory_core.errors import MemoryServiceError
from memory_core.records.keys import Keys
from memory_core.records.memory import Priority
from memory_core.settings.settings import Settings
from memory_core.store.connection import connect
from memory_server.contract.arguments import StoreArguments
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.memories.store import store_memory
from memory_server.service import Service

from .memories import power
from .memories.machine import short_folder
from .progress import Patience, settle

_log = logging.getLogger(__name__)
LEVELS = {"always": "always", "everysec": "everysec", "critical": "everysec"}
"""`appendfsync` at each level. At `critical`, only critical memories answered as synced count."""
DURABLE = ("always", "critical")
_NAMESPACE = "power"
_OFTEN = Patience(pause=0.02)
_AGENTS = 8
_CRITICAL_AGENTS = 64
"""Each gets only a few answers, because it waits for the disk while the other agents keep storing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The number of cuts at each level, and their delay after the first acknowledged write. Levels share the time."""

    seed: int
    cuts: int = 50
    least: float = 0.5
    most: float = 2.5
    minutes: float = 20.0


@dataclass(frozen=True, slots=True)
class Loss:
    """The effect of one cut: acknowledged and lost stores, and the age of the oldest lost one."""

    written: int = 0
    lost: int = 0
    seconds: float = 0.0
    unsynced: int = 0


@dataclass(slots=True)
class Report:
    """The losses at each level. Only the durable levels promise none."""

    plan: Plan
    losses: dict[str, list[Loss]] = field(default_factory=lambda: {level: [] for level in LEVELS})
    skipped: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the durable levels lost nothing."""
        return not sum(loss.lost for level in DURABLE for loss in self.losses[level])

    def __str__(self) -> str:
        if self.skipped:
            return f"SKIPPED power losses: {self.skipped}"
        return "\n".join(self._line(level, losses) for level, losses in self.losses.items())

    def _line(self, level: str, losses: list[Loss]) -> str:
        written, lost = sum(one.written for one in losses), sum(one.lost for one in losses)
        hit = sum(one.lost > 0 for one in losses)
        worst = max((one.seconds for one in losses), default=0.0)
        return (
            f"seed {self.plan.seed}, {level}, appendfsync {LEVELS[level]}: {len(losses)} power losses, "
            f"{written} acknowledged, {lost} lost in {hit} of them, the oldest {worst:.2f} s old"
        )


async def run(plan: Plan, folder: Path) -> Report:
    """Cut the power repeatedly, at least once at each level."""
    report = Report(plan)
    if power.compiler() is None:
        report.skipped = "no C compiler (cc)"
        return report
    for level in LEVELS:
        chance = random.Random(f"{plan.seed} {level}")
        ends = time.monotonic() + plan.minutes * 60 / len(LEVELS)
        for number in range(plan.cuts):
            if number and time.monotonic() > ends:
                break
            place = short_folder()
            try:
                report.losses[level].append(await _cut(plan, level, place, chance))
            finally:
                shutil.rmtree(place, ignore_errors=True)
            _log.info("%s: %s", level, report.losses[level][-1])
    return report


async def _cut(plan: Plan, level: str, folder: Path, chance: random.Random) -> Loss:
    data, log = folder / "data", folder / "synced"
    data.mkdir()
    environment = {"LD_PRELOAD": str(power.build(folder)), "POWER_LOG": str(log)}
    options = ["--dir", str(data), "--appendfsync", LEVELS[level], "--loglevel", "warning"]
    redis = RedisServer(folder, options=options, environment=environment)
    await asyncio.to_thread(redis.start)
    try:
        acknowledged, cut_at = await _write(redis, plan, level, chance)
        cut = power.cut(data, log)
        await asyncio.to_thread(redis.start)
        lost = await _missing(redis, list(acknowledged))
    finally:
        redis.kill()
    oldest = max((cut_at - acknowledged[one] for one in lost), default=0.0)
    return Loss(len(acknowledged), len(lost), oldest, cut.lost)


async def _write(redis: RedisServer, plan: Plan, level: str, chance: random.Random) -> tuple[dict[str, float], float]:
    """Store until the power goes; return the acknowledged ids with their times, and the time of the cut."""
    acknowledged: dict[str, float] = {}
    settings = Settings.load(redis_url=redis.url_of(SERVER), limits={"burst": 1_000_000_000})
    async with Service(settings).running() as service:

        async def work(number: int, priority: Priority) -> None:
            request = RequestContext(Caller(_NAMESPACE, f"agent{number}"))
            while True:
                new = StoreArguments(content=f"{chance.random()} {number}", priority=priority, wait=False)
                answer = await store_memory(service, request, new)
                if level != "critical" or answer.durability == "synced":
                    acknowledged[answer.memory_id] = time.monotonic()

        async def unanswered() -> list[str]:
            return [] if acknowledged else ["no write is acknowledged"]

        await store_memory(
            service, RequestContext(Caller(_NAMESPACE, "first")), StoreArguments(content="the first", wait=False)
        )
        priorities = [Priority.MEDIUM] * _AGENTS
        if level == "critical":
            priorities += [Priority.CRITICAL] * _CRITICAL_AGENTS
        working = [asyncio.create_task(work(*numbered)) for numbered in enumerate(priorities)]
        left = await settle(unanswered, _OFTEN)
        assert not left, left
        await asyncio.sleep(chance.uniform(plan.least, plan.most))
        redis.kill()
        cut_at = time.monotonic()
        for task in working:
            task.cancel()
        for outcome in await asyncio.gather(*working, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError | MemoryServiceError), outcome
    return acknowledged, cut_at


async def _missing(redis: RedisServer, ids: list[str]) -> list[str]:
    keys = Keys(_NAMESPACE)
    async with connect(redis.url) as client:

        async def loading() -> list[str]:
            try:
                await client.ping()
            except BusyLoadingError:
                return ["Redis is loading"]
            return []

        left = await settle(loading, _OFTEN)
        assert not left, left
        pipe = client.pipeline(transaction=False)
        for memory_id in ids:
            pipe.exists(keys.memory(memory_id))
        found = await pipe.execute()
    return [memory_id for memory_id, there in zip(ids, found, strict=True) if not there]
