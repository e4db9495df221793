"""Workers are killed and paused and Redis is cut off under a small team; `make chaos` runs the large scenario."""

from __future__ import annotations

import pytest
from chaos import tasks

SMALL = tasks.Plan(
    seed=4, tasks=300, workers=3, kills=4, pauses=3, redis_kills=1, server_kills=1, submitters=1, minutes=1.5
)


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
