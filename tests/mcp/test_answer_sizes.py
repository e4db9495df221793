"""No tool's default answer takes more than 8,000 tokens, its two forms together, whatever the store holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.stack import Agent, Server, text_of

from memory_core.records.task import TaskState
from memory_server.contract import tokens
from memory_server.contract.agents import HeartbeatAnswer
from memory_server.contract.answer import Answer, shorten
from memory_server.contract.memories import ClearAnswer
from memory_server.contract.sharing import ShareAnswer
from memory_server.contract.tasks import ClaimedTask, DistributeAnswer, PendingAnswer, SimilarTask, Suited, Why

MOST = 8000
LONG = {"log": "a:1;" * 3800}


async def _check(agent: Agent, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await agent.raw(tool, **arguments)
    assert not result.is_error, text_of(result)
    forms = [text_of(result), json.dumps(result.structured_content, ensure_ascii=False, separators=(",", ":"))]
    assert sum(map(tokens.count, forms)) <= MOST, (tool, *map(tokens.count, forms))
    assert len("".join(forms)) / 4 <= MOST
    assert result.structured_content is not None
    return result.structured_content


@pytest.mark.long
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
    tasks = [
        {"op": "distribute_task", "description": f"{n} " + "港" * 4000, "payload": {"p": "y;" * 8000}}
        for n in range(40)
    ]  # fmt: skip
    assert (await alice.call("batch_operations", operations=tasks))["failed"] == 0
    await _check(alice, "list_tasks")
    await bob.call("register_agent", max_tasks=50)
    await _check(bob, "get_pending_tasks", claim=False)
    await _check(bob, "get_pending_tasks", limit=5)
    for name in "港波":
        capabilities = [name * 80 + str(n) for n in range(64)]
        await _check(bob, "register_agent", capabilities=capabilities, description=name * 5000)
    await _check(bob, "wait_for_events", cursor="0-0", timeout_seconds=0)
    await _check(bob, "wait_for_events", cursor="0-0", timeout_seconds=0, query="港", min_score=0)
    await _check(bob, "memory_stats")
    await _check(bob, "gpu_status")
    await _check(bob, "clear_memory", memory_ids=sorted(listed) * 20)
    await _check(bob, "update_agent_heartbeat", lease_tokens=[f"{n:026}.1.x" for n in range(1000)])


async def test_batch_fits_and_keeps_an_outcome_for_each_operation(alice: Agent) -> None:
    stores = [{"op": "store_memory", "content": f"Buoy {n}. " + "x1;" * 300} for n in range(150)]
    stored = await _check(alice, "batch_operations", operations=stores)
    assert [one["ok"] for one in stored["results"]] == [True] * 150
    assert "memory_id" in stored["results"][0]["result"]
    assert stored["partial"] is True
    assert "max_tokens=0" in stored["reason"]
    listed = (await alice.call("get_agent_memories", limit=100))["memories"]
    reads = [{"op": "retrieve_memory", "memory_id": one["memory_id"]} for one in listed]
    wrong = [{"op": "retrieve_memory", "memory_id": "none"}] * 3
    read = await _check(alice, "batch_operations", operations=[*reads, *wrong])
    assert [one["ok"] for one in read["results"]] == [True] * len(reads) + [False] * 3
    assert all(one["error"]["code"] == "not_found" for one in read["results"][-3:])
    short = await _check(alice, "batch_operations", operations=[*reads, {"op": "list_tasks"}, *reads])
    assert short["results"][len(reads)]["result"]["tasks"] == [], "short results stay whole among long ones"
    whole = await alice.call("batch_operations", operations=reads, max_tokens=0)
    contents = [one["result"]["memory"]["content"] for one in whole["results"]]
    assert contents == [one["content"] for one in stores[: -len(contents) - 1 : -1]]
    many = await alice.call("batch_operations", operations=[{"op": "list_tasks"}] * 1000)
    assert len(many["results"]) == 1000
    assert len(json.dumps(many)) / 4 <= MOST


async def test_tasks_are_listed_page_by_page(alice: Agent) -> None:
    made = [{"op": "distribute_task", "description": f"Mend net {n}. " + "d " * 300} for n in range(45)]
    await alice.call("batch_operations", operations=made)
    titles, cursor, text = list[str](), None, text_of(await alice.raw("list_tasks"))
    while not titles or cursor:
        page = await _check(alice, "list_tasks", cursor=cursor)
        titles += [task["description"].partition(".")[0] for task in page["tasks"]]
        assert page["total"] == 45
        cursor = page.get("next_cursor")
    assert titles == [f"Mend net {n}" for n in reversed(range(45))]
    assert " of 45 tasks." in text
    assert "More: cursor=" in text


async def test_agents_with_many_long_skills_are_cut(server: Server, namespace: str, alice: Agent) -> None:
    for n in range(12):
        async with server.agent(f"skilled-{n:02}", namespace) as agent:
            await agent.call("register_agent", capabilities=[f"skill {k} of {n} " + "k" * 100 for k in range(60)])
    page = await _check(alice, "list_agents")
    assert len(page["agents"]) == page["total"] == 12
    for agent in page["agents"]:
        assert len(agent["capabilities"]) + agent["more_capabilities"] == 60
    assert " more" in text_of(await alice.raw("list_agents"))


async def test_budget_of_shared_context_counts_grants(alice: Agent, bob: Agent) -> None:
    await bob.call("register_agent")
    for n in range(15):
        await alice.store(f"Chart {n}. " + "sea " * 100, wait=False, tags=["chart"])
    await alice.call("share_context_with_agent", target_agent="bob", tags=["chart"])
    for n in range(20):
        await alice.call("share_context_with_agent", target_agent="bob", tags=[f"label {n}"], note="why " * 200)
    for most in (2000, 4000):
        result = await bob.raw("get_shared_context", max_tokens=most)
        assert tokens.count(text_of(result)) + tokens.count(json.dumps(result.structured_content)) <= most
        assert result.structured_content is not None
        assert result.structured_content["memories"]
        assert "older grants" in result.structured_content["reason"]


async def test_events_left_out_come_with_the_next_call(alice: Agent, bob: Agent) -> None:
    await bob.call("register_agent")
    for _ in range(2):
        stores = [{"op": "store_memory", "content": "港" * 60 + str(n), "visibility": "public"} for n in range(40)]
        await alice.call("batch_operations", operations=stores)
    seen, cursor, more = list[str](), "0-0", True
    while more:
        page = await _check(bob, "wait_for_events", cursor=cursor, timeout_seconds=0, kinds=["memory"])
        seen += [event["id"] for event in page["events"]]
        cursor, more = page["cursor"], page["more"]
    assert len(seen) == len(set(seen)) == 80


LONG_ANSWERS = [
    HeartbeatAnswer(
        leases_renewed={f"{n:026}": "2026-11-29T09:00:00.000Z" for n in range(1000)}, leases_lost=[], pending_tasks=0
    ),
    ClearAnswer(matched=0, deleted=0, not_yours=[f"{n:026}" for n in range(1000)]),
    DistributeAnswer(
        task_id="t",
        state=TaskState.PENDING,
        why=Why(reason="r", considered=[Suited(agent=f"a{n}", score=1, free=1, success=1, speed=1, closeness=1)
                                        for n in range(300)]),
        similar_tasks=[SimilarTask(task_id=f"{n}", score=1, state=TaskState.PENDING, submitted_by="bob",
                                   description="港" * 5000) for n in range(3)],
    ),
    ShareAnswer(grant_id="g", target_agent="bob", permission="read", covers="tags " + "港" * 20_000),
]  # fmt: skip
"""Answers without a budget of their own."""


@pytest.mark.parametrize("answer", LONG_ANSWERS, ids=lambda answer: type(answer).__name__)
def test_long_answer_is_shortened_and_says_what_was_cut(answer: Answer) -> None:
    before = answer.model_copy(deep=True)
    short = shorten(answer, MOST)
    assert short.tokens() <= MOST
    assert short.tokens() > MOST / 4
    assert short.partial
    assert "cut: " in (short.reason or "")
    assert answer == before, "the answer that was given stays whole"
    assert shorten(short, MOST) is short


def test_lists_of_leased_tasks_keep_each_lease() -> None:
    view = {"state": "leased", "task_type": "x", "priority": "low", "submitted_by": "bob", "max_retries": 1,
            "created_at": "now", "description": "港" * 500, "payload": {"p": "y;" * 500}}  # fmt: skip
    tasks = [ClaimedTask.model_validate(view | {"task_id": f"{n}", "lease_token": f"{n}.1.x"}) for n in range(12)]
    short = shorten(PendingAnswer(tasks=tasks), MOST)
    assert short.tokens() <= MOST
    assert [task.lease_token for task in short.tasks] == [f"{n}.1.x" for n in range(12)]


LISTS: dict[str, dict[str, Any]] = {
    "get_agent_memories": {"limit": 1},
    "list_tasks": {"limit": 1},
    "list_agents": {},
    "retrieve_memory": {"max_tokens": 600},
    "get_shared_context": {"max_tokens": 500},
}
"""The tools with a cursor of their list, with arguments for a short first page."""


async def _send(agent: Agent, tool: str, cursor: str | None, memory_id: str) -> Any:
    arguments = LISTS[tool] | ({"memory_id": memory_id} if tool == "retrieve_memory" else {})
    return await agent.raw(tool, **arguments, **{"since" if tool == "get_shared_context" else "cursor": cursor})


@pytest.mark.long
async def test_cursors_of_other_lists_are_refused(server: Server, namespace: str, alice: Agent, bob: Agent) -> None:
    async with server.agent("carol", namespace) as carol, server.agent("alice", f"{namespace}-2") as elsewhere:
        ids = list[list[str]]()
        for agent in (alice, elsewhere, carol):
            ids.append([await agent.store(f"Log {n}. " + "sea " * 2000, wait=False, tags=["log"]) for n in range(2)])
            for n in range(2):
                await agent.call("distribute_task", description=f"Task {n}")
            await agent.call("register_agent")
        await bob.call("register_agent")
        for word in ("Tide ", "Moon "):
            await bob.store(word * 200, wait=False, tags=["log"])
        await bob.call("share_context_with_agent", target_agent="alice", tags=["log"])
        for n in range(30):
            async with server.agent(f"crew-{n:02}", namespace) as crew:
                await crew.call("register_agent", description="d " * 90, capabilities=[f"{n} " + "k" * 250])
        cursors = dict[str, str]()
        for tool in LISTS:
            cursors[tool] = (await _send(alice, tool, None, ids[0][0])).structured_content["next_cursor"]
            assert not (await _send(alice, tool, cursors[tool], ids[0][0])).is_error, tool
        for tool, own in cursors.items():
            others = [cursor for cursor in cursors.values() if cursor != own]
            for cursor in (*others, "x", "~", "0-0", "é", "9" * 400, own[1:], "\x00", "crew-01"):
                result = await _send(alice, tool, cursor, ids[0][0])
                assert result.is_error, (tool, cursor)
                assert "invalid_argument" in text_of(result)
            assert (await _send(elsewhere, tool, own, ids[1][0])).is_error, tool
            assert (await _send(carol, tool, own, ids[2][0])).is_error, tool
        assert (await _send(alice, "retrieve_memory", cursors["retrieve_memory"], ids[0][1])).is_error
        assert (await alice.raw("list_tasks", states=["dead"], cursor=cursors["list_tasks"])).is_error
        for cursor in (*cursors.values(), "x", "1", "-1-0", "9" * 15 + "-0"):
            assert (await alice.raw("wait_for_events", cursor=cursor, timeout_seconds=0)).is_error


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
