"""An agent takes the turns of others in the queues."""

from __future__ import annotations

import time

import pytest
from support.stack import Stack, serving
from support.task_functions import TaskNamespace
from support.task_helpers import code

from memory_core.records.task import TaskPriority

pytestmark = pytest.mark.redteam


async def test_agent_that_cancels_and_submits_again_takes_turns_with_others(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register("worker", capacity=100)
    wanted = [await tasks.submit(by="victim") for _ in range(4)]
    got: list[str] = []
    for _ in range(12):
        greedy = await tasks.submit(by="mallory")
        (lease,) = await tasks.claim("worker")
        got.append(lease["id"])
        await tasks.cancel(greedy, by="mallory")
    assert set(wanted) <= set(got), "starved"


async def test_claim_of_many_tasks_behind_avoided_ones_is_cheap(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register("mallory", "idle", capacity=1000)
    for _ in range(600):
        await tasks.submit(by="mallory", priority=TaskPriority.CRITICAL, claim=600, quota=10000)
    for _ in range(6):
        for lease in await tasks.claim("mallory", 100):
            answer = await tasks.fail("mallory", lease["lease_token"])
            assert answer["status"] == "reassigned"
    await tasks.sweep()
    for _ in range(3000):
        await tasks.submit(by="mallory", claim=600, quota=10000)
    await stack.client.config_resetstat()
    assert len(await tasks.claim("mallory", 100)) == 100
    spent = (await stack.client.info("commandstats"))["cmdstat_zrange"]["usec"]
    assert spent < 10_000, f"the claim read queues for {spent / 1000} ms"


async def test_agent_that_lets_a_task_wait_does_not_get_it_again_at_once(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register("mallory", "worker")
    task = await tasks.submit(to=["mallory"], claim=60)
    assert await tasks.field(task, "assigned") == "mallory"
    await stack.client.zadd(tasks.keys.unclaimed, {task: 1})
    await tasks.sweep()
    assert (await tasks.assign(task, "mallory", "worker"))["assigned"] == {task: "worker"}


async def test_only_able_agent_gets_a_task_again_that_it_let_wait(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register("worker")
    task = await tasks.submit(to=["worker"], claim=60)
    await stack.client.zadd(tasks.keys.unclaimed, {task: 1})
    await tasks.sweep()
    assert (await tasks.assign(task, "worker"))["assigned"] == {task: "worker"}


async def dead_tasks(tasks: TaskNamespace, number: int, skill: str = "") -> list[str]:
    """Submit tasks of different kinds whose deadline passes."""
    submitted = [
        await tasks.submit(by="mallory", needs=[f"{skill}{count}"] if skill else [], deadline=time.time() + 100)
        for count in range(number)
    ]
    await tasks.client.zadd(tasks.keys.deadlines, dict.fromkeys(submitted, 1))
    await tasks.sweep()
    return submitted


async def test_requeued_tasks_count_against_the_kinds_of_their_submitter(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    dead = [task for round in range(3) for task in await dead_tasks(tasks, 40, f"round-{round}-skill-")]
    statuses = [(await tasks.requeue(task, by="mallory"))["status"] for task in dead]
    assert set(statuses) == {"pending", "too_many_kinds"}
    assert await stack.client.hlen(tasks.keys.kinds) == 64


@pytest.mark.parametrize("limit", ["own_quota", "quota"])
async def test_requeued_tasks_count_against_the_quotas(stack: Stack, namespace: str, limit: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    quotas = {"quota": 100, "own_quota": 100, limit: 2}
    statuses = [(await tasks.requeue(task, by="mallory", **quotas))["status"] for task in await dead_tasks(tasks, 4)]
    assert statuses == ["pending", "pending", limit, limit]


async def test_agent_cannot_requeue_more_tasks_than_it_may_submit(stack: Stack, namespace: str) -> None:
    quotas = {"open_tasks": 1}
    async with serving(stack.redis.url, quotas=quotas) as server, server.agent("mallory", namespace) as mallory:
        tasks = TaskNamespace(stack.client, namespace)
        await mallory.call("register_agent")
        dead = await dead_tasks(tasks, 2)
        await mallory.call("requeue_task", task_id=dead[0])
        assert await code(mallory, "requeue_task", task_id=dead[1]) == "quota_exceeded"
        assert await tasks.state(dead[1]) == "dead"
