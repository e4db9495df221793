"""Registered agents, and what each of them can see of others, for the tests of sharing."""

from __future__ import annotations

from typing import Any

from stack import Agent, Refused


async def register(agent: Agent, name: str) -> None:
    """Make an agent one that can be shared with."""
    await agent.call("register_agent", agent_id=name)


async def share(agent: Agent, target: str, **what: Any) -> str:
    """Share and give the grant's id."""
    return (await agent.call("share_context_with_agent", target_agent=target, **what))["grant_id"]


async def refusal(agent: Agent, tool: str, /, **arguments: Any) -> tuple[str, str]:
    """Make a call that must be refused; give the code and the whole text."""
    try:
        answer = await agent.call(tool, **arguments)
    except Refused as error:
        return error.code, error.text
    raise AssertionError(f"{tool} was not refused: {answer}")


async def readable(agent: Agent, memory_ids: list[str]) -> list[str]:
    """Give those of some memories that an agent can retrieve."""
    return [
        memory_id for memory_id in memory_ids if not (await agent.raw("retrieve_memory", memory_id=memory_id)).is_error
    ]
