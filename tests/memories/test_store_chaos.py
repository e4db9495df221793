"""Agents use memories while one fault of each kind strikes; `make chaos SCENARIO=store` runs the large scenario."""

from __future__ import annotations

import pytest
from chaos import power_loss, store

SMALL = store.Plan(
    seed=8,
    minutes=10,
    agents=2,
    per_epoch=1500,
    pause=0.1,
    duration_factor=0.2,
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


@pytest.mark.long
async def test_faults_lose_no_acknowledged_write_and_falsify_no_answer(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    report = await store.run(SMALL, tmp_path_factory.mktemp("chaos"))
    assert report.is_good, report
    assert len(report.faults) >= ALWAYS_POSSIBLE, report
    assert set(SMALL.kinds) <= set(report.faults) | set(report.skipped), report
    for op in ("store_memory", "update_memory", "clear_memory"):
        assert report.acknowledged[op], f"no {op} was acknowledged, so the run does not test it"
    for skipped, why in report.skipped.items():
        print(f"SKIPPED {skipped}: {why}")


@pytest.mark.long
async def test_power_cut_keeps_synced_writes_and_drops_unsynced_ones(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    report = await power_loss.run(
        power_loss.Plan(seed=8, cuts=2, least=0.3, most=0.8), tmp_path_factory.mktemp("power")
    )
    if report.skipped:
        pytest.skip(report.skipped)
    assert report.is_good, report
    taken = [loss.lost for loss in report.losses["everysec"]]
    assert any(taken), "cuts right after a write take unsynced writes, cuts right after a sync do not"
    assert all(loss.written for loss in report.losses["critical"]), "critical memories were acknowledged before the cut"
    assert any(loss.unsynced for loss in report.losses["critical"]), "a cut took something, but no critical memory"
