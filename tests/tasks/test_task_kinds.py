"""How many kinds of task one agent may have open, and how many task types are counted."""

from __future__ import annotations

from support.stack import Stack
from support.task_functions import TaskNamespace


async def test_agent_has_at_most_64_kinds_open(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    ids = [await tasks.submit(window=number) for number in range(64)]
    assert (await tasks.try_to_submit(window=64))["status"] == "too_many_kinds"
    assert (await tasks.try_to_submit(window=63))["status"] == "submitted"
    assert (await tasks.try_to_submit(window=64, by="another"))["status"] == "submitted"
    await tasks.call("rm1_task_cancel", id=ids[0], agent="lead", admin=False, reason="", audit=_entry("lead"))
    assert (await tasks.try_to_submit(window=64))["status"] == "submitted"


async def test_kind_counts_end_with_the_tasks(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register("worker")
    for _ in range(3):
        await tasks.submit(only="worker", to=["worker"])
    assert await stack.client.hlen(tasks.keys.kinds_of("lead")) == 1
    for lease in await tasks.claim("worker", 3):
        await tasks.complete("worker", lease["lease_token"])
    assert not await stack.client.exists(tasks.keys.kinds_of("lead"))


async def test_only_so_many_task_types_are_counted(stack: Stack, namespace: str) -> None:
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register("worker")
    performance = tasks.keys.performance("worker")
    await stack.client.hset(performance, mapping={f"done:type{number}": 1 for number in range(400)})
    await tasks.submit()
    await tasks.complete("worker", await tasks.lease("worker"))
    assert await stack.client.hlen(performance) == 400


def _entry(who: str) -> dict[str, object]:
    return {"who": who, "op": "cancel_task", "ids": [], "from": "here", "nonce": ""}
