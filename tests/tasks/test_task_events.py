"""Whom the Functions of tasks and agents tell of what. The events of tests/events/test_events.py are made by hand."""

from __future__ import annotations

from support.stack import Agent, Server, Stack

from memory_core.records.keys import Keys


async def told(agent: Agent, cursor: str) -> list[str]:
    """Give what an agent has been told of tasks since a cursor."""
    answer = await agent.call("wait_for_events", cursor=cursor, kinds=["task"], timeout_seconds=0)
    return [event["op"] for event in answer["events"]]


async def beginning(agent: Agent) -> str:
    """Give the cursor of now."""
    return (await agent.call("wait_for_events", timeout_seconds=0))["cursor"]


async def test_giver_and_holder_are_told_what_becomes_of_a_task_and_nobody_else(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    async with server.agent("carol", namespace) as carol:
        for agent in (bob, carol):
            await agent.call("register_agent", capabilities=["lamps"])
        cursors = [await beginning(agent) for agent in (alice, bob, carol)]
        given = await alice.call("distribute_task", description="Trim the lamp.", assign_to="bob")
        assert await told(bob, cursors[1]) == ["assigned"]
        (mine,) = (await bob.call("get_pending_tasks"))["tasks"]
        await bob.call("complete_task", task_id=given["task_id"], lease_token=mine["lease_token"])
        assert await told(alice, cursors[0]) == ["assigned", "leased", "completed"]
        assert await told(carol, cursors[2]) == []


async def test_who_registers_is_told_of_to_others(namespace: str, alice: Agent, bob: Agent) -> None:
    cursor = await beginning(alice)
    await bob.call("register_agent")
    answer = await alice.call("wait_for_events", cursor=cursor, kinds=["agent"], timeout_seconds=0)
    assert [(event["op"], event["id"]) for event in answer["events"]] == [("registered", "bob")]


async def test_of_what_an_agent_did_the_last_eight_vectors_are_kept(stack: Stack, namespace: str, alice: Agent) -> None:
    await alice.call("register_agent", max_tasks=10)
    for number in range(10):
        await alice.call("distribute_task", description=f"Oil hinge {number}.")
    for task in (await alice.call("get_pending_tasks", limit=10, with_memories=0))["tasks"]:
        await alice.call("complete_task", task_id=task["task_id"], lease_token=task["lease_token"])
    assert await stack.client.llen(Keys(namespace).did("alice")) == 8
