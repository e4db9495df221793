"""What the tests of agents and tasks share: registering, handing out work, letting an agent die."""

from __future__ import annotations

from typing import Any

from memory_server.operations.team_sweeper import sweep_team
from support.embedder_fixtures import wait_until
from support.stack import Agent, Server

HEARTBEAT = 0.2
"""The shortest that may be registered: an agent is dead after twice as long."""


async def register(agent: Agent, **profile: Any) -> dict[str, Any]:
    """Register an agent and give how it is shown."""
    return (await agent.call("register_agent", **profile))["agent"]


async def submit(agent: Agent, description: str = "Sweep the floor.", **how: Any) -> dict[str, Any]:
    """Submit a task and give the answer."""
    return await agent.call("distribute_task", description=description, **how)


async def claim(agent: Agent) -> dict[str, Any]:
    """Claim one task, which must be there."""
    (task,) = (await agent.call("get_pending_tasks", with_memories=0))["tasks"]
    return task


async def claim_when_there(agent: Agent) -> dict[str, Any]:
    """Claim one task as soon as it comes."""
    (task,) = (await agent.call("get_pending_tasks", with_memories=0, wait_seconds=10))["tasks"]
    return task


async def shown(agent: Agent, name: str) -> dict[str, Any]:
    """Give how an agent is listed."""
    listed = (await agent.call("list_agents", alive_only=False))["agents"]
    return next(found for found in listed if found["agent_id"] == name)


async def state_of(agent: Agent, task_id: str) -> str:
    """Give the state of a task."""
    return (await agent.call("get_task", task_id=task_id))["task"]["state"]


async def sweep(server: Server, namespace: str) -> None:
    """Do now what the sweeper does for a namespace's team."""
    await sweep_team(await server.runtime.service(), namespace)


async def fall_silent(witness: Agent, name: str) -> None:
    """Wait until an agent that says nothing is overdue."""

    async def is_overdue() -> bool:
        return not (await shown(witness, name))["alive"]

    await wait_until(is_overdue)
