"""Whoever gave a task and whoever has it are told what becomes of it, and nobody else."""

from __future__ import annotations

from stack import Agent, Server


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
