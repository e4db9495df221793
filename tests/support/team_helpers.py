"""Registers agents, submits and claims tasks, and lets an agent fall silent."""

from __future__ import annotations

from typing import Any

from memory_server.operations.team_sweeper import sweep_team
from support.embedder_fixtures import wait_until
from support.stack import Agent, Server

HEARTBEAT = 0.2
"""The shortest allowed interval; an agent is dead after this time without a call."""


async def register(agent: Agent, **profile: Any) -> dict[str, Any]:
    """Register an agent and return its profile."""
    return (await agent.call("register_agent", **profile))["agent"]


async def submit(agent: Agent, description: str = "Sweep the floor.", **how: Any) -> dict[str, Any]:
    """Submit a task and return the answer."""
    return await agent.call("distribute_task", description=description, **how)


async def claim(agent: Agent) -> dict[str, Any]:
    """Claim one task, which must exist."""
    (task,) = (await agent.call("get_pending_tasks", with_memories=0))["tasks"]
    return task


async def claim_when_there(agent: Agent) -> dict[str, Any]:
    """Claim one task as soon as it arrives."""
    (task,) = (await agent.call("get_pending_tasks", with_memories=0, wait_seconds=10))["tasks"]
    return task


async def shown(agent: Agent, name: str) -> dict[str, Any]:
    """Return an agent's entry in the list."""
    listed = (await agent.call("list_agents", alive_only=False))["agents"]
    return next(found for found in listed if found["agent_id"] == name)


async def sweep(server: Server, namespace: str) -> None:
    """Run the team sweep of a namespace now."""
    await sweep_team(await server.runtime.service(), namespace)


async def fall_silent(witness: Agent, name: str) -> None:
    """Wait until a silent agent is overdue."""

    async def is_overdue() -> bool:
        return not (await shown(witness, name))["alive"]

    await wait_until(is_overdue)
