"""Workers are killed and paused and Redis is cut off under a small team; `make chaos` runs the large scenario."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from chaos import tasks
from chaos.progress import Patience
from redis.exceptions import RedisError

from memory_core.records.keys import Keys
from memory_core.store.connection import connect

SMALL = tasks.Plan(
    seed=4, tasks=300, workers=3, kills=4, pauses=3, redis_kills=1, server_kills=1, submitters=1, minutes=10
)

QUIET = replace(SMALL, kills=0, pauses=0, redis_kills=0, server_kills=0)


@pytest.mark.long
async def test_kills_and_pauses_lose_no_task_and_complete_none_twice(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    report = await tasks.run(SMALL, tmp_path_factory.mktemp("chaos"))
    assert report.is_good, report
    assert report.double_completions == 0
    assert sum(report.ends.values()) >= SMALL.tasks
    assert report.faults == {"worker kills": 4, "pauses": 3, "Redis kills": 1, "server kills": 1}
    for op in ("completed", "cancelled", "dead", "failed", "expired", "unblocked", "assigned", "renewed"):
        assert report.happened[op], f"no task was {op}, so the run does not test it"
    assert report.refusals["complete lease_lost"]


@pytest.mark.long
async def test_short_run_stops_submitting_and_leaves_no_task_open(tmp_path_factory: pytest.TempPathFactory) -> None:
    plan = replace(QUIET, tasks=10_000, minutes=0.15)
    report = await tasks.run(plan, tmp_path_factory.mktemp("chaos"))
    assert report.is_good, report
    assert 0 < sum(report.ends.values()) < plan.tasks


@pytest.mark.long
async def test_tasks_that_are_never_offered_again_are_reported(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("chaos")
    run = asyncio.create_task(tasks.run(replace(QUIET, patience=Patience(stalled_seconds=10.0)), folder))
    lost = await _lose_retries(folder / "redis.sock")
    report = await run
    rules = Counter(violation.rule for violation in report.violations)
    without_end = {violation.task for violation in report.violations if violation.rule == "task without end"}
    assert lost & without_end, report
    assert rules["not at rest"] == 2, report


async def _lose_retries(path: Path) -> set[str]:
    """Remove three tasks from the queue of retries, as a bug might. Some may end at their deadline nevertheless."""
    keys, lost = Keys("chaos"), set[str]()
    async with connect(f"unix://{path}") as client, asyncio.timeout(120):
        while len(lost) < 3:
            with suppress(RedisError, OSError):
                for raw in await client.zrange(keys.delayed, 0, 0):
                    lost |= {raw.decode()} if await client.zrem(keys.delayed, raw) else set()
            await asyncio.sleep(0.01)
    return lost
