"""Which agents receive which task and agent events. tests/events/test_events.py publishes its events by hand."""

from __future__ import annotations

from support.stack import Agent, Server, Stack

from memory_core.records.keys import Keys


async def task_events(agent: Agent, cursor: str) -> list[str]:
    """The task events an agent received since the cursor."""
    answer = await agent.call("wait_for_events", cursor=cursor, kinds=["task"], timeout_seconds=0)
    return [event["op"] for event in answer["events"]]


async def current_cursor(agent: Agent) -> str:
    """The current cursor."""
    return (await agent.call("wait_for_events", timeout_seconds=0))["cursor"]


async def test_only_submitter_and_holder_receive_the_events_of_a_task(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    async with server.agent("carol", namespace) as carol:
        for agent in (bob, carol):
            await agent.call("register_agent", capabilities=["lamps"])
        cursors = [await current_cursor(agent) for agent in (alice, bob, carol)]
        given = await alice.call("distribute_task", description="Trim the lamp.", assign_to="bob")
        assert await task_events(bob, cursors[1]) == ["assigned"]
        (mine,) = (await bob.call("get_pending_tasks"))["tasks"]
        await bob.call("complete_task", task_id=given["task_id"], lease_token=mine["lease_token"])
        assert await task_events(alice, cursors[0]) == ["assigned", "leased", "completed"]
        assert await task_events(carol, cursors[2]) == []


async def test_registration_is_announced_to_other_agents(namespace: str, alice: Agent, bob: Agent) -> None:
    cursor = await current_cursor(alice)
    await bob.call("register_agent")
    answer = await alice.call("wait_for_events", cursor=cursor, kinds=["agent"], timeout_seconds=0)
    assert [(event["op"], event["id"]) for event in answer["events"]] == [("registered", "bob")]


async def test_last_eight_vectors_of_completed_tasks_are_kept(stack: Stack, namespace: str, alice: Agent) -> None:
    await alice.call("register_agent", max_tasks=10)
    for number in range(10):
        await alice.call("distribute_task", description=f"Oil hinge {number}.")
    for task in (await alice.call("get_pending_tasks", limit=10, with_memories=0))["tasks"]:
        await alice.call("complete_task", task_id=task["task_id"], lease_token=task["lease_token"])
    assert await stack.client.llen(Keys(namespace).did("alice")) == 8
