"""Submitters take turns: only tasks that wait or that others took count, however the other ones ended."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable

import pytest
from support.stack import Stack
from support.task_functions import TaskNamespace

from memory_core.records.task import TaskPriority

MANY = 40
Ended = Callable[[TaskNamespace], Awaitable[str]]
"""Submits many tasks of `lead` that end. Returns the one that is left."""


async def cancelled_before(tasks: TaskNamespace) -> str:
    for task in [await tasks.submit() for _ in range(MANY)]:
        await tasks.cancel(task)
    return await tasks.submit()


async def cancelled_after(tasks: TaskNamespace) -> str:
    *ended, left = [await tasks.submit() for _ in range(MANY + 1)]
    for task in ended:
        await tasks.cancel(task)
    return left


async def cancelled_in_any_order(tasks: TaskNamespace) -> str:
    ended = [await tasks.submit() for _ in range(MANY + 1)]
    left = ended.pop(MANY // 2)
    random.Random(1).shuffle(ended)
    for task in ended:
        await tasks.cancel(task)
    return left


async def cancelled_while_assigned(tasks: TaskNamespace) -> str:
    *ended, left = [await tasks.submit(to=["worker"]) for _ in range(MANY + 1)]
    for task in ended:
        await tasks.cancel(task)
    return left


async def cancelled_in_each_priority(tasks: TaskNamespace) -> str:
    ended = [await tasks.submit(priority=priority) for priority in TaskPriority for _ in range(MANY)]
    left = await tasks.submit()
    for task in ended:
        await tasks.cancel(task)
    return left


async def past_their_deadline(tasks: TaskNamespace) -> str:
    ended = [await tasks.submit(deadline=time.time() + 100) for _ in range(MANY)]
    left = await tasks.submit()
    await tasks.client.zadd(tasks.keys.deadlines, dict.fromkeys(ended, 1))
    await tasks.sweep()
    assert {await tasks.state(task) for task in ended} == {"dead"}
    return left


async def dropped_with_a_dependency(tasks: TaskNamespace) -> str:
    first = await tasks.submit()
    for _ in range(MANY):
        await tasks.submit(after=[first])
    await tasks.cancel(first)
    await tasks.sweep()
    return await tasks.submit()


async def done_by_their_submitter(tasks: TaskNamespace) -> str:
    await tasks.register("lead", capacity=100)
    for _ in range(MANY):
        await tasks.submit(only="lead")
    for lease in await tasks.claim("lead", MANY):
        assert await tasks.complete("lead", lease["lease_token"]) == "completed"
    return await tasks.submit()


async def done_long_ago(tasks: TaskNamespace) -> str:
    for _ in range(MANY):
        await tasks.submit()
    for lease in await tasks.claim("worker", MANY):
        assert await tasks.complete("worker", lease["lease_token"]) == "completed"
    for _ in range(2 * MANY):
        await tasks.submit(by="other")
        await tasks.complete("worker", await tasks.lease("worker"))
    return await tasks.submit()


ENDED = {ended.__name__: ended for ended in (
    cancelled_before, cancelled_after, cancelled_in_any_order, cancelled_while_assigned, cancelled_in_each_priority,
    past_their_deadline, dropped_with_a_dependency, done_by_their_submitter, done_long_ago,
)}  # fmt: skip


@pytest.mark.parametrize("ended", ENDED)
async def test_only_task_of_a_submitter_is_among_the_first_two(stack: Stack, namespace: str, ended: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register("worker", capacity=1000)
    left = await ENDED[ended](tasks)
    for _ in range(MANY):
        await tasks.submit(by="other")
    leases = [lease["id"] for lease in await tasks.claim("worker", 3 * MANY)]
    assert leases.index(left) <= 1, f"it came {leases.index(left) + 1}. of {len(leases)}"


async def test_tasks_of_a_submitter_keep_their_order_after_cancels(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register("worker", capacity=1000)
    submitted = [await tasks.submit() for _ in range(MANY)]
    for task in submitted[::3]:
        await tasks.cancel(task)
    leases = [lease["id"] for lease in await tasks.claim("worker", MANY)]
    assert leases == [task for task in submitted if task not in submitted[::3]]


async def test_idle_time_gives_a_submitter_no_extra_turns(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register("worker", capacity=1000)
    await tasks.submit(by="idle")
    await tasks.lease("worker")
    for _ in range(MANY):
        await tasks.submit(by="busy")
    await tasks.claim("worker", MANY)
    busy = [await tasks.submit(by="busy") for _ in range(4)]
    idle = [await tasks.submit(by="idle") for _ in range(MANY)]
    first = [lease["id"] for lease in await tasks.claim("worker", 8)]
    assert len(set(first) & set(busy)) >= 3
    assert len(set(first) & set(idle)) >= 4


async def test_waiting_turns_leave_no_key_behind(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register("worker", capacity=1000)
    cancelled, *_ = [await tasks.submit() for _ in range(3)]
    await tasks.cancel(cancelled)
    for lease in await tasks.claim("worker", 3):
        await tasks.complete("worker", lease["lease_token"])
    assert not await stack.client.exists(tasks.keys.turns_of("lead"))
