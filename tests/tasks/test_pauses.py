"""A pause in which no server reached Redis costs no lease, assignment or agent: their deadlines move by its length."""

from __future__ import annotations

import pytest
from support.stack import Stack
from support.task_functions import TaskNamespace

from memory_core.records import redis_time

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAUSE = 81
HOLDS = 60


async def _pause(tasks: TaskNamespace, seconds: float = PAUSE) -> None:
    """Make the namespace look as if its last call was before the pause: move all of its times back."""
    client, keys = tasks.client, tasks.keys
    for queue in (keys.leases, keys.unclaimed, keys.agents):
        for name, score in await client.zrange(queue, 0, -1, withscores=True):
            await client.zadd(queue, {name: score - seconds})
            if queue == keys.leases:
                await client.hset(keys.task(name.decode()), "lease_until", f"{score - seconds:.6f}")
    last = await client.hget(keys.counters, "team_at")
    await client.hset(keys.counters, "team_at", f"{float(last or redis_time.now()) - seconds:.6f}")


@pytest.fixture
def tasks(stack: Stack, namespace: str) -> TaskNamespace:
    return TaskNamespace(stack.client, namespace)


async def test_lease_survives_a_pause(tasks: TaskNamespace) -> None:
    await tasks.register("ada")
    task = await tasks.submit()
    token = await tasks.lease("ada")
    await _pause(tasks)
    await tasks.sweep()
    assert await tasks.state(task) == "leased"
    left = await tasks.client.zscore(tasks.keys.leases, task) - (await tasks.client.time())[0]
    assert HOLDS - 5 < left < HOLDS + 5
    assert await tasks.complete("ada", token) == "completed"


async def test_task_is_completed_before_the_first_sweep_after_a_pause(tasks: TaskNamespace) -> None:
    await tasks.register("ada")
    await tasks.submit()
    token = await tasks.lease("ada")
    await _pause(tasks)
    assert await tasks.complete("ada", token) == "completed"


async def test_heartbeat_renews_a_lease_after_a_pause(tasks: TaskNamespace) -> None:
    await tasks.register("ada")
    await tasks.submit()
    token = await tasks.lease("ada")
    await _pause(tasks)
    assert [renewed for renewed, _ in (await tasks.heartbeat("ada", token))["renewed"]] == [token]


async def test_failure_is_reported_after_a_pause(tasks: TaskNamespace) -> None:
    await tasks.register("ada")
    await tasks.submit()
    token = await tasks.lease("ada")
    await _pause(tasks)
    assert (await tasks.fail("ada", token))["status"] == "retrying"


async def test_claim_of_another_takes_no_lease_after_a_pause(tasks: TaskNamespace) -> None:
    await tasks.register("ada", "ben")
    task = await tasks.submit()
    await tasks.lease("ada")
    await _pause(tasks)
    assert await tasks.claim("ben") == []
    assert await tasks.field(task, "attempt") == "1"


async def test_assignment_survives_a_pause(tasks: TaskNamespace) -> None:
    await tasks.register("ada")
    task = await tasks.submit(to=["ada"])
    await _pause(tasks)
    await tasks.sweep()
    assert await tasks.field(task, "assigned") == "ada"


async def test_agent_is_not_declared_dead_after_a_pause(tasks: TaskNamespace) -> None:
    await tasks.register("ada")
    await tasks.submit()
    await tasks.lease("ada")
    await _pause(tasks, 3 * PAUSE)
    assert (await tasks.declare_dead("ada"))["status"] == "alive"


async def test_agent_silent_before_a_pause_is_dead_after_it(tasks: TaskNamespace) -> None:
    await tasks.register("ada")
    await tasks.client.zadd(tasks.keys.agents, {"ada": (await tasks.client.time())[0] - 30})
    await _pause(tasks)
    assert (await tasks.declare_dead("ada"))["status"] == "dead"


async def test_lease_expires_after_a_pause_and_its_rest(tasks: TaskNamespace) -> None:
    await tasks.register("ada")
    task = await tasks.submit()
    await tasks.lease("ada")
    await _pause(tasks)
    await tasks.sweep()
    await tasks.client.zadd(tasks.keys.leases, {task: 1})
    await tasks.sweep()
    assert await tasks.state(task) == "pending"


async def test_deadline_of_a_task_does_not_move(tasks: TaskNamespace) -> None:
    now = (await tasks.client.time())[0]
    task = await tasks.submit(deadline=now + 1000)
    await tasks.client.zadd(tasks.keys.deadlines, {task: now - 1})
    await _pause(tasks)
    await tasks.sweep()
    assert await tasks.state(task) == "dead"


async def test_short_silence_moves_no_deadline(tasks: TaskNamespace) -> None:
    await tasks.register("ada")
    task = await tasks.submit()
    await tasks.lease("ada")
    ends = await tasks.client.zscore(tasks.keys.leases, task)
    last = float(await tasks.client.hget(tasks.keys.counters, "team_at") or 0)
    await tasks.client.hset(tasks.keys.counters, "team_at", f"{last - 8:.6f}")
    await tasks.sweep()
    assert await tasks.client.zscore(tasks.keys.leases, task) == ends


async def test_clock_set_back_moves_deadlines_back(tasks: TaskNamespace) -> None:
    await tasks.register("ada")
    task = await tasks.submit()
    await tasks.lease("ada")
    await _pause(tasks, -7200)
    await tasks.sweep()
    left = await tasks.client.zscore(tasks.keys.leases, task) - (await tasks.client.time())[0]
    assert HOLDS - 5 < left < HOLDS + 5
