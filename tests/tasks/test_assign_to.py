"""`assign_to`: only that agent gets the task, which waits while the agent is registered and is dead once it left."""

from __future__ import annotations

from typing import Any

import pytest
from support import task_helpers
from support.sharing_helpers import refusal
from support.stack import Agent, Server, Stack
from support.task_functions import TaskNamespace
from support.task_helpers import claim, code, complete, fail, joined, lease, show, state, submit

from memory_core.records.keys import Keys
from memory_server.operations.team_sweeper import sweep_team

quick, lead, ada, ben = task_helpers.quick, task_helpers.lead, task_helpers.ada, task_helpers.ben
GONE = "it is only for ben, which was unregistered"


async def test_assigned_task_waits_while_its_agent_drains(lead: Agent, ada: Agent, ben: Agent) -> None:
    await ben.call("update_agent_heartbeat", status="draining")
    answer = await lead.call("distribute_task", description="Caulk the hull.", assign_to="ben")
    assert answer.get("assigned_to") is None
    assert answer["why"]["reason"] == "only ben gets it, when it is alive, able to do it, not draining and has room"
    assert await claim(ada) == await claim(ben) == []
    await ben.call("update_agent_heartbeat", status="active")
    assert (await lease(ben))["task_id"] == answer["task_id"]


async def test_assigned_task_waits_while_its_agent_lacks_a_capability(lead: Agent, ada: Agent, ben: Agent) -> None:
    for agent in (ada, ben):
        await agent.call("register_agent", capabilities=["caulking"])
    task_id = await submit(lead, assign_to="ben", required_capabilities=["caulking"])
    await ben.call("register_agent", capabilities=[])
    assert await claim(ada) == await claim(ben) == []
    assert await state(lead, task_id) == "pending"
    await ben.call("register_agent", capabilities=["caulking"])
    assert (await lease(ben))["task_id"] == task_id


async def test_assigned_tasks_wait_while_their_agent_is_silent(
    quick: Server, stack: Stack, namespace: str, lead: Agent, ada: Agent, ben: Agent
) -> None:
    await ben.call("register_agent", max_tasks=1)
    ids = [await submit(lead, f"Caulk plank {number}.", assign_to="ben") for number in range(3)]
    first = await lease(ben)
    await stack.client.zadd(Keys(namespace).agents, {"ben": 1})
    await sweep_team(await quick.runtime.service(), namespace)
    assert sorted([await state(lead, task_id) for task_id in ids]) == ["leased", "pending", "pending"]
    assert await claim(ada, limit=9) == []
    await complete(ben, first)
    taken = [first["task_id"]]
    for _ in ids[1:]:
        task = await lease(ben)
        taken.append(task["task_id"])
        await complete(ben, task)
    assert set(taken) == set(ids)


@pytest.mark.parametrize("how", ["queued", "assigned", "leased", "retrying", "waiting"])
async def test_assigned_task_is_dead_once_its_agent_left(
    quick: Server, namespace: str, lead: Agent, ada: Agent, ben: Agent, how: str
) -> None:
    await ben.call("register_agent", max_tasks=1)
    await ada.call("register_agent", max_tasks=5, capabilities=["caulking"])
    task_id, blocker = await _assigned_to_ben(lead, ben, how)
    await ben.call("unregister_agent")
    await ben.call("register_agent", max_tasks=5)
    if blocker:
        await complete(ada, await lease(ada))
    await task_helpers.wait_until(lambda: _is_dead(quick, namespace, lead, task_id))
    assert (await show(lead, task_id))["error"] == GONE
    assert task_id in [task["task_id"] for task in (await lead.call("list_tasks", states="dead"))["tasks"]]
    assert task_id not in [task["task_id"] for agent in (ada, ben) for task in await claim(agent, limit=9)]


async def _assigned_to_ben(lead: Agent, ben: Agent, how: str) -> tuple[str, str | None]:
    """Submit a task for ben that reaches a state. Also return the task that it waits for."""
    if how == "queued":
        await submit(lead, "Busy.", assign_to="ben")
    blocker = await submit(lead, "First.", required_capabilities=["caulking"]) if how == "waiting" else None
    task_id = await submit(lead, assign_to="ben", depends_on=[blocker] if blocker else [])
    if how in {"leased", "retrying"}:
        held = await lease(ben)
        if how == "retrying":
            await fail(ben, held)
    return task_id, blocker


async def _is_dead(quick: Server, namespace: str, lead: Agent, task_id: str) -> bool:
    await sweep_team(await quick.runtime.service(), namespace)
    return await state(lead, task_id) == "dead"


async def test_submitter_and_leaver_are_told_which_tasks_ended(lead: Agent, ada: Agent, ben: Agent) -> None:
    cursor = (await lead.call("wait_for_events", timeout_seconds=0))["cursor"]
    mine = await submit(lead, assign_to="ben")
    left = await ben.call("unregister_agent")
    assert (left["tasks_reassigned"], left["tasks_ended"]) == (0, 1)
    events = (await lead.call("wait_for_events", cursor=cursor, kinds=["task"], timeout_seconds=0))["events"]
    assert [event["op"] for event in events if event["id"] == mine][-1] == "dead"
    assert await claim(ada) == []


async def test_task_for_an_agent_that_left_is_neither_submitted_nor_requeued(
    namespace: str, quick: Server, lead: Agent, ben: Agent
) -> None:
    task_id = await submit(lead, assign_to="ben")
    await ben.call("unregister_agent")
    assert await code(lead, "distribute_task", description="For nobody.", assign_to="ben") == "not_found"
    refused, text = await refusal(lead, "requeue_task", task_id=task_id)
    assert refused == "conflict"
    assert "only for ben, which is not registered" in text
    async with joined(quick, namespace, "ben") as new:
        assert await claim(new) == []
        assert (await lead.call("requeue_task", task_id=task_id))["state"] == "pending"
        assert (await lease(new))["task_id"] == task_id


async def test_sweep_ends_tasks_of_an_agent_whose_leave_was_cut_short(
    quick: Server, stack: Stack, namespace: str, lead: Agent, ben: Agent
) -> None:
    await ben.call("register_agent", max_tasks=1)
    ids = [await submit(lead, f"Caulk plank {number}.", assign_to="ben") for number in range(40)]
    tasks, kept = TaskNamespace(stack.client, namespace), dict[str, Any](known=[], proofs=None, memories="keep")
    owners = await stack.client.hget(tasks.keys.agent("ben"), "owners")
    kept["known"] = [owners.decode()] if owners else []
    answer = await tasks.call(
        "rm1_agent_unregister",
        [tasks.keys.agent("ben")],
        agent="ben",
        audit={"who": "ben", "op": "x", "ids": []},
        **kept,
    )
    assert answer["status"] == "unregistered"
    await sweep_team(await quick.runtime.service(), namespace)
    states = [await state(lead, task_id) for task_id in ids]
    assert states.count("dead") == 39
