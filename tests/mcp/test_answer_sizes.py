"""No tool's default answer takes more than 8,000 tokens, whatever the store holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.stack import Agent, Server, text_of

from memory_server.contract import tokens

MOST = 8000
LONG = {"log": "a:1;" * 3800}


async def _check(agent: Agent, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await agent.raw(tool, **arguments)
    assert not result.is_error, text_of(result)
    for form in (text_of(result), json.dumps(result.structured_content, ensure_ascii=False)):
        assert tokens.count(form) <= MOST, (tool, tokens.count(form))
        assert len(form) / 4 <= MOST
    assert result.structured_content is not None
    return result.structured_content


async def test_default_answers_fit_a_context(server: Server, namespace: str, alice: Agent, bob: Agent) -> None:
    first = await alice.store("港は夜明けに開く。" * 3000, wait=False, visibility="public")
    stores = [
        {"op": "store_memory", "content": f"Harbour {n}. " + "x1;" * 90, "tags": [f"t{t}" * 40 for t in range(20)],
         "visibility": "public", "metadata": LONG}
        for n in range(30)
    ]  # fmt: skip
    assert (await alice.call("batch_operations", operations=stores))["failed"] == 0
    listed, cursor, pages = set[str](), None, 0
    while pages == 0 or cursor:
        page = await _check(alice, "get_agent_memories", cursor=cursor)
        listed |= {memory["memory_id"] for memory in page["memories"]}
        cursor, pages = page.get("next_cursor"), pages + 1
    assert len(listed) == 31
    await _check(alice, "retrieve_memory", memory_id=first)
    await _check(alice, "update_memory", memory_id=first, priority="high")
    await _check(alice, "semantic_search", query="harbour", mode="keyword")
    await bob.call("register_agent")
    await alice.call("share_context_with_agent", target_agent="bob", memory_types=["context"])
    for n in range(60):
        await alice.call("share_context_with_agent", target_agent="bob", tags=[f"label {n}"], note="why " * 50)
    await _check(bob, "get_shared_context")
    await _check(bob, "memory_stats")
    task = await alice.call("distribute_task", description="d " * 2000, payload={"p": "y;" * 8000})
    await _check(alice, "get_task", task_id=task["task_id"])
    await _check(alice, "list_tasks")


@pytest.mark.long
async def test_list_of_many_agents_is_read_page_by_page(server: Server, namespace: str, alice: Agent) -> None:
    for n in range(120):
        async with server.agent(f"agent-{n:03}", namespace) as agent:
            await agent.call("register_agent", description="d " * 200, capabilities=[f"s-{n}-{k}" for k in range(9)])
    names, cursor = list[str](), None
    while not names or cursor:
        page = await _check(alice, "list_agents", cursor=cursor)
        names += [agent["agent_id"] for agent in page["agents"]]
        cursor = page.get("next_cursor")
    assert len(names) == 120
