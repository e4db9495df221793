"""An hour of agents that work silently, with the default heartbeat and lease. Redis's clock goes on in steps.

Each step is shorter than what the servers take for a pause, and is followed by a sweep, as if the servers ran all
the time.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from chaos.memories import clock
from support.embedder_fixtures import RedisServer, wait_until
from support.stack import Server, serving
from support.task_helpers import claim, code, events, joined, show, state, submit

from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.times import parse_time
from memory_core.redis_client import Client
from memory_core.store.connection import connect
from memory_server.engine import presence
from memory_server.operations.team_sweeper import sweep_team

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="session")]
TEAM = "hour"
MINUTE = 60
STEP = 20
LEASE = 30 * MINUTE


class Hour:
    """A server and its Redis, whose clocks go on when told to."""

    def __init__(self, folder: Path) -> None:
        assert clock.works(), "libfaketime is not installed: apt install libfaketime"
        self._file, self.passed = folder / "clock", 0
        clock.set_offset(self._file, 0)
        environment = clock.environment(self._file) | {"LD_PRELOAD": str(clock.library()), "FAKETIME_NO_CACHE": "1"}
        self.redis = RedisServer(folder, environment=environment)
        self.redis.start()
        self.client: Client = connect(self.redis.url)
        self.server: Server

    def monotonic(self) -> float:
        """The monotonic clock of the server."""
        return time.monotonic() + self.passed

    async def step(self) -> None:
        """Let some seconds pass, and let the server sweep the team."""
        before = await redis_time.ask(self.client)
        self.passed += STEP
        clock.set_offset(self._file, self.passed)
        assert await redis_time.ask(self.client) >= before + STEP
        await sweep_team(self.server.service, TEAM)

    async def pass_minutes(self, minutes: int) -> None:
        for _ in range(minutes * MINUTE // STEP):
            await self.step()


@pytest_asyncio.fixture(loop_scope="session")
async def hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Hour]:
    """A server with the default settings."""
    made = Hour(tmp_path)
    monkeypatch.setattr(redis_time, "_ahead", None)
    monkeypatch.setattr(presence, "time", SimpleNamespace(monotonic=made.monotonic))
    try:
        async with serving(made.redis.url) as made.server:
            yield made
    finally:
        await made.client.aclose()
        made.redis.kill()


async def test_silent_agent_keeps_its_task_and_a_killed_one_hands_it_on(hour: Hour) -> None:
    async with (
        hour.server.agent("lead", TEAM) as lead,
        joined(hour.server, TEAM, "ada", "legacy") as ada,
        joined(hour.server, TEAM, "ben", "legacy") as ben,
    ):
        task_id = await submit(lead, assign_to=None)
        await ben.call("update_agent_heartbeat", status="draining")
        (task,) = await claim(ada, wait_seconds=5)
        await ben.call("update_agent_heartbeat", status="active")

        async def ends() -> float:
            return parse_time((await show(lead, task_id))["lease_until"], "lease_until")

        for _ in range(3):
            before = await ends()
            await hour.pass_minutes(20)
            assert (await claim(ben), await state(lead, task_id)) == ([], "leased")
            await ada.call("list_agents")

            async def renewed(before: float = before) -> bool:
                return await ends() > before

            await wait_until(renewed)
        last_call, until = await redis_time.ask(hour.client), await ends()
        assert until == pytest.approx(last_call + LEASE, abs=5)

        # ada is killed: it never calls again.
        given = await claim(ben)
        while not given and await redis_time.ask(hour.client) < until + STEP:
            assert await state(lead, task_id) == "leased"
            await hour.step()
            given = await claim(ben)
        assert until <= await redis_time.ask(hour.client) < until + 2 * STEP
        assert [(one["task_id"], one["attempt"]) for one in given] == [(task_id, 1)]
        lost = {"task_id": task_id, "lease_token": task["lease_token"]}
        assert await code(ada, "complete_task", **lost) == "lease_lost"
        assert (await events(lead, task_id)).count("expired") == 1
    assert await hour.client.hget(Keys(TEAM).counters, "paused") is None, "the servers took a step for a pause"
