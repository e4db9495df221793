"""Registers agents, shares between them, and reads what each can see."""

from __future__ import annotations

from typing import Any

from support.stack import Agent, Refused

SECRET = "The treasure chest is buried under the old lighthouse."
LABELS: dict[str, Any] = {"tags": ["gold"], "context": "island", "memory_type": "document"}


async def register(agent: Agent, name: str) -> None:
    """Register an agent, so that it can receive grants."""
    await agent.call("register_agent", agent_id=name)


async def share(agent: Agent, target: str, **what: Any) -> str:
    """Share and return the grant's id."""
    return (await agent.call("share_context_with_agent", target_agent=target, **what))["grant_id"]


async def refusal(agent: Agent, tool: str, /, **arguments: Any) -> tuple[str, str]:
    """Make a call that must be refused; return the code and the whole text."""
    try:
        answer = await agent.call(tool, **arguments)
    except Refused as error:
        return error.code, error.text
    raise AssertionError(f"{tool} was not refused: {answer}")


async def readable(agent: Agent, memory_ids: list[str]) -> list[str]:
    """Return the memories that an agent can retrieve."""
    return [
        memory_id for memory_id in memory_ids if not (await agent.raw("retrieve_memory", memory_id=memory_id)).is_error
    ]


def ids_of(memories: list[dict[str, Any]]) -> list[str]:
    """Return the ids of memories."""
    return [memory["memory_id"] for memory in memories]


def found_ids(answer: dict[str, Any]) -> list[str]:
    """Return the ids of the hits of a search."""
    return ids_of([hit["memory"] for hit in answer["hits"]])


async def _resource_shows(agent: Agent, memory_id: str) -> bool:
    from mcp.shared.exceptions import MCPError

    try:
        return "lighthouse" in (await agent.client.read_resource(f"memory://{memory_id}")).model_dump_json()
    except MCPError:
        return False


async def visibility_by_read(reader: Agent, memory_id: str) -> dict[str, bool]:
    """Return, for each way of reading, whether it shows a memory of alice's and no other of hers."""
    listed = await reader.call("get_agent_memories", agent_id="alice")
    filtered = await reader.call("get_agent_memories", agent_ids=["alice"], tags=["gold"], context="island")
    stats = await reader.call("memory_stats", agent_id="alice")
    seen = {
        "retrieve": await readable(reader, [memory_id]) == [memory_id],
        "resource": await _resource_shows(reader, memory_id),
        "list": ids_of(listed["memories"]) == [memory_id],
        "list total": listed["total"] == 1,
        "filtered list": ids_of(filtered["memories"]) == [memory_id],
        "filtered total": filtered["total"] == 1,
        "statistics": stats["total"] == 1 and stats["by_agent"] == {"alice": 1},
        "similar to it": not (await reader.raw("find_similar_memories", memory_id=memory_id)).is_error,
    }
    for mode in ("hybrid", "vector", "keyword"):
        query = "treasure under the lighthouse, or a bakery"
        answer = await reader.call("semantic_search", query=query, mode=mode, agent_ids=["alice"])
        seen[f"{mode} search"] = found_ids(answer) == [memory_id]
    batch = await reader.call("batch_operations", operations=[{"op": "retrieve_memory", "memory_id": memory_id}])
    seen["batch"] = batch["succeeded"] == 1
    probe = await reader.call("store_memory", content=f"I know: {SECRET}")
    seen["similar advice"] = memory_id in ids_of(probe["similar"])
    for exact in (True, False):
        answer = await reader.call("find_similar_memories", memory_id=probe["memory_id"], exact=exact)
        seen[f"find similar, exact {exact}"] = memory_id in found_ids(answer)
    await reader.call("clear_memory", memory_ids=[probe["memory_id"]])
    return seen
