"""A small team at work while workers are killed and paused and Redis is cut off; `make chaos` runs the large one."""

from __future__ import annotations

import pytest
from chaos import tasks

SMALL = tasks.Plan(
    seed=4, tasks=300, workers=3, kills=4, pauses=3, redis_kills=1, server_kills=1, submitters=1, minutes=1.5
)


async def test_under_kills_and_pauses_every_task_ends_and_none_is_completed_twice(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    report = await tasks.run(SMALL, tmp_path_factory.mktemp("chaos"))
    assert report.is_good, report
    assert report.double_completions == 0
    assert sum(report.ends.values()) >= SMALL.tasks
    assert report.faults == {"worker kills": 4, "pauses": 3, "Redis kills": 1, "server kills": 1}
    for op in ("completed", "cancelled", "dead", "failed", "expired", "unblocked", "assigned", "renewed"):
        assert report.happened[op], f"nothing was {op}: the run shows nothing about it"
    assert report.refusals["complete lease_lost"]
