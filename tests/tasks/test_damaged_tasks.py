"""No damaged or missing record stops the walks over tasks, agents and grants: it is removed and reported."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from support.stack import Stack
from support.task_functions import TaskNamespace

from memory_core.records.ids import new_id
from memory_core.records.task_kind import TaskKind

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANY = TaskKind().id
GHOST = "01GHOST"
Plant = Callable[[TaskNamespace], Awaitable[str]]
"""Plants damage and returns the key that has it."""


def _due(queue: str) -> Plant:
    """A task that is due in a sorted set, and has no record."""

    async def plant(tasks: TaskNamespace) -> str:
        key = getattr(tasks.keys, queue)
        await tasks.client.zadd(key, {GHOST: 1})
        return key

    return plant


def _wrong_type(name: str, of: str = "") -> Plant:
    """A key of another type."""

    async def plant(tasks: TaskNamespace) -> str:
        key = getattr(tasks.keys, name)
        key = key(of) if of else key
        await tasks.client.set(key, "damaged")
        return key

    return plant


def _expired_with(field: str, value: str | None) -> Plant:
    """An expired lease of a task whose record has another value, or none."""

    async def plant(tasks: TaskNamespace) -> str:
        await tasks.register("zoe")
        task = await tasks.submit()
        await tasks.lease("zoe")
        await tasks.client.zadd(tasks.keys.leases, {task: 1})
        if value is None:
            await tasks.client.hdel(tasks.keys.task(task), field)
        else:
            await tasks.client.hset(tasks.keys.task(task), field, value)
        return tasks.keys.leases

    return plant


async def _queued_ghost(tasks: TaskNamespace) -> str:
    await tasks.submit()
    key = tasks.keys.backlog(ANY)
    await tasks.client.zadd(key, {GHOST: 0})
    return key


async def _queued_string(tasks: TaskNamespace) -> str:
    await tasks.client.set(tasks.keys.task(GHOST), "damaged")
    await _queued_ghost(tasks)
    return tasks.keys.task(GHOST)


async def _unreadable_kind(tasks: TaskNamespace) -> str:
    await tasks.client.hset(tasks.keys.kinds, "bad", b"\xc1")
    return tasks.keys.kinds


async def _kind_without_fields(tasks: TaskNamespace) -> str:
    await tasks.client.hset(tasks.keys.kinds, "bad", b"\x80")
    return tasks.keys.kinds


async def _assigned_ghost(tasks: TaskNamespace) -> str:
    await tasks.client.xadd(tasks.keys.inbox("ada"), {"task": GHOST, "score": "0"})
    return tasks.keys.inbox("ada")


async def _assignment_without_task(tasks: TaskNamespace) -> str:
    await tasks.client.xadd(tasks.keys.inbox("ada"), {"odd": "1"})
    return tasks.keys.inbox("ada")


async def _held_ghosts(tasks: TaskNamespace) -> str:
    await tasks.client.sadd(tasks.keys.held("ada"), *(f"{GHOST}{number}" for number in range(10)))
    return tasks.keys.held("ada")


async def _agent_without_record(tasks: TaskNamespace) -> str:
    await tasks.client.zadd(tasks.keys.agents, {"ghost": 9e12})
    return tasks.keys.agents


async def _agent_without_window(tasks: TaskNamespace) -> str:
    await tasks.register("zoe")
    await tasks.client.hdel(tasks.keys.agent("zoe"), "context_window")
    return tasks.keys.agents


async def _agent_of_another_type(tasks: TaskNamespace) -> str:
    await tasks.register("zoe")
    await tasks.client.set(tasks.keys.agent("zoe"), "damaged")
    return tasks.keys.agent("zoe")


async def _unsettled_ghost(tasks: TaskNamespace) -> str:
    await tasks.client.sadd(tasks.keys.unsettled, GHOST)
    await tasks.client.set(tasks.keys.dependents(GHOST), "damaged")
    return tasks.keys.dependents(GHOST)


async def _dependent_without_record(tasks: TaskNamespace) -> str:
    await tasks.client.sadd(tasks.keys.unsettled, GHOST)
    await tasks.client.sadd(tasks.keys.dependents(GHOST), "gone")
    await tasks.client.hset(tasks.keys.task("gone"), "state", "waiting")
    return tasks.keys.dependents(GHOST)


async def _count_that_is_no_number(tasks: TaskNamespace) -> str:
    await tasks.client.hset(tasks.keys.counters, "open_tasks", "many")
    return tasks.keys.counters


async def _turn_that_is_no_number(tasks: TaskNamespace) -> str:
    await tasks.client.hset(tasks.keys.turns, "2", "soon")
    return tasks.keys.turns


DAMAGE: dict[str, Plant] = {
    "a lease without its task": _due("leases"),
    "an assignment without its task": _due("unclaimed"),
    "a retry without its task": _due("delayed"),
    "a deadline without its task": _due("deadlines"),
    "a leased task without kind": _expired_with("kind", None),
    "a leased task with an unreadable kind": _expired_with("kind_spec", "\xc1"),
    "a leased task without agent": _expired_with("assigned", None),
    "a leased task without submitter": _expired_with("submitter", None),
    "a leased task whose attempt is no number": _expired_with("attempt", "x"),
    "a leased task without rank": _expired_with("rank", None),
    "a lease of a task in another state": _expired_with("state", "waiting"),
    "a queued task without record": _queued_ghost,
    "a queued task of another type": _queued_string,
    "an unreadable kind": _unreadable_kind,
    "a kind without fields": _kind_without_fields,
    "an assigned task without record": _assigned_ghost,
    "an assignment that names no task": _assignment_without_task,
    "held tasks without records": _held_ghosts,
    "an agent without record": _agent_without_record,
    "an agent without context window": _agent_without_window,
    "an agent of another type": _agent_of_another_type,
    "an ended task whose dependents are of another type": _unsettled_ghost,
    "a dependent without record": _dependent_without_record,
    "a count that is no number": _count_that_is_no_number,
    "a turn that is no number": _turn_that_is_no_number,
    **{
        f"{name} of another type": _wrong_type(name)
        for name in ("leases", "unclaimed", "delayed", "deadlines", "unsettled", "kinds", "turns", "counters")
    },
    **{f"{name} of another type": _wrong_type(name) for name in ("agents", "dead_tasks", "events")},
    "inbox of another type": _wrong_type("inbox", "ada"),
    "held of another type": _wrong_type("held", "ada"),
    "performance of another type": _wrong_type("performance", "ada"),
    "backlog of another type": _wrong_type("backlog", ANY),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_task_is_done_in_spite_of_damage(stack: Stack, namespace: str, damage: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register("ada")
    key = await DAMAGE[damage](tasks)
    await tasks.declare_dead("ghost")
    await tasks.sweep()
    # Both ways to a task: queued and claimed, and assigned when it is submitted.
    for to in ([], ["ada"]):
        await tasks.register("ada")
        wanted = await tasks.submit(to=to)
        for _ in range(4):
            for claimed in await tasks.claim("ada"):
                assert await tasks.complete("ada", claimed["lease_token"]) == "completed"
        assert await tasks.state(wanted) == "completed"
    await tasks.sweep()
    reported = [fields[b"key"].decode() for _, fields in await stack.client.xrange(tasks.keys.damaged)]
    assert key in reported
    assert len(reported) < 20


async def test_sweep_goes_on_after_more_damaged_leases_than_one_call_handles(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await stack.client.zadd(tasks.keys.leases, {new_id(): 1 for _ in range(100)})
    await tasks.sweep()
    assert await stack.client.zcard(tasks.keys.leases) == 0
    assert await stack.client.xlen(tasks.keys.damaged) == 100


async def test_damaged_task_no_longer_counts_as_open(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await _expired_with("attempt", "x")(tasks)
    await tasks.sweep()
    assert await stack.client.hget(tasks.keys.counters, "open_tasks") in (None, b"0")
    assert await tasks.held_counts("zoe") == {"leases": 0, "unclaimed": 0, "held": 0, "inbox": 0}
