"""Agents at work on memories while one fault of each kind strikes; `make chaos SCENARIO=store` runs the large one."""

from __future__ import annotations

import pytest
from chaos import powercuts, store

SMALL = store.Plan(
    seed=8,
    minutes=1.5,
    agents=2,
    per_epoch=1500,
    pause=0.1,
    hard=0.2,
    sample=40,
    largest_batch=12,
    kinds=(
        *("connections cut", "Redis killed", "functions flushed", "replies lost", "sidecar killed", "delays"),
        *("index dropped", "poison jobs", "power lost", "memory full", "Redis paused", "refused connections"),
        *("sidecar paused", "append-only file rewritten", "torn append-only file", "half-open connections"),
        *("disk full", "server paused", "server killed"),
    ),
)
ALWAYS_POSSIBLE = 15


async def test_under_faults_of_every_kind_nothing_acknowledged_is_lost_and_no_answer_lies(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    report = await store.run(SMALL, tmp_path_factory.mktemp("chaos"))
    assert report.is_good, report
    assert len(report.faults) >= ALWAYS_POSSIBLE, report
    assert set(SMALL.kinds) <= set(report.faults) | set(report.skipped), report
    for op in ("store_memory", "update_memory", "clear_memory"):
        assert report.acknowledged[op], f"no {op} was acknowledged: the run shows nothing about it"
    for skipped, why in report.skipped.items():
        print(f"SKIPPED {skipped}: {why}")


async def test_what_was_synced_survives_a_loss_of_power_and_the_simulation_takes_what_was_not(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    report = await powercuts.run(powercuts.Plan(seed=8, cuts=2, least=0.3, most=0.8), tmp_path_factory.mktemp("power"))
    if report.skipped:
        pytest.skip(report.skipped)
    assert report.is_good, report
    taken = [loss.lost for loss in report.losses["everysec"]]
    assert any(taken), "of cuts right after writes some take what nothing waited for: not those right after a sync"
    assert all(loss.written for loss in report.losses["critical"]), "critical memories were acknowledged before the cut"
    assert any(loss.unsynced for loss in report.losses["critical"]), "a cut took something, and none of them"
