"""In which order tasks are handed out and to whom, how the answer explains it, and what a claim includes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio
from support.embedder_fixtures import wait_until
from support.stack import Agent, Refused, Server, Stack, in_own_task, serving
from support.task_functions import TaskNamespace
from support.task_helpers import claim, complete, fail, joined, lease, show, submit

from memory_server.service import Service
from memory_server.tasks.routing import dispatch


@pytest_asyncio.fixture(loop_scope="session")
async def lead(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """The submitter."""
    async with in_own_task(server.agent("lead", namespace)) as agent:
        yield agent


@pytest_asyncio.fixture(loop_scope="session")
async def ada(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """The worker, once registered."""
    async with in_own_task(server.agent("ada", namespace)) as agent:
        yield agent


async def test_most_urgent_task_goes_first(lead: Agent, ada: Agent) -> None:
    order = ["low", "critical", "medium", "high"]
    for priority in order:
        await submit(lead, f"{priority} work", priority=priority)
    await ada.call("register_agent", max_tasks=1)
    taken: list[str] = []
    while tasks := await claim(ada):
        taken.append(tasks[0]["priority"])
        await complete(ada, tasks[0])
    assert taken == ["critical", "high", "medium", "low"]


async def test_fifty_tasks_of_one_submitter_do_not_delay_another(
    server: Server, namespace: str, lead: Agent, ada: Agent
) -> None:
    await asyncio.gather(*(submit(lead, f"Haul rope {number}.") for number in range(50)))
    async with server.agent("modest", namespace) as modest:
        single = await submit(modest, "Pass the salt.")
    await ada.call("register_agent", max_tasks=100)
    tasks = await claim(ada, limit=100)
    assert len(tasks) == 51
    assert {task["submitted_by"] for task in tasks[:2]} == {"lead", "modest"}
    assert single in [task["task_id"] for task in tasks[:2]]


async def test_open_tasks_are_limited_by_the_quota(stack: Stack, namespace: str) -> None:
    async with (
        serving(stack.redis.url, tasks={"open_tasks": 2}) as server,
        joined(server, namespace, "ada") as ada,
    ):
        await submit(ada)
        task_id = await submit(ada)
        with pytest.raises(Refused) as refused:
            await submit(ada)
        assert refused.value.code == "quota_exceeded"
        assert refused.value.error["retry_after"] > 0
        await ada.call("cancel_task", task_id=task_id)
        await submit(ada)
        await complete(ada, await lease(ada))
        await submit(ada)


async def test_submission_explains_its_assignment(server: Server, namespace: str, lead: Agent, ada: Agent) -> None:
    unmatched = await lead.call("distribute_task", description="Mend the sail.", required_capabilities=["sewing"])
    assert unmatched["why"] == {
        "reason": "no living agent with sewing is registered; it goes out when one is",
        "considered": [],
    }
    await ada.call("register_agent", capabilities=["knots"])
    only = await lead.call("distribute_task", description="Tie it.", required_capabilities=["knots"])
    assert only["assigned_to"] == "ada"
    assert "only able agent" in only["why"]["reason"]
    (considered,) = only["why"]["considered"]
    assert considered["agent"] == "ada"
    assert all(0 <= considered[figure] <= 1 for figure in ("score", "free", "success", "speed", "closeness"))
    busy = await lead.call("distribute_task", description="Tie that.", required_capabilities=["knots"])
    assert "busy" in busy["why"]["reason"]
    assert busy.get("assigned_to") is None
    waiting = await lead.call("distribute_task", description="Go.", depends_on=[only["task_id"]])
    assert "depends on" in waiting["why"]["reason"]
    async with joined(server, namespace, "ben", capabilities=["knots"], max_tasks=9):
        best = await lead.call("distribute_task", description="Tie all.", required_capabilities=["knots"])
        assert (best["assigned_to"], best["why"]["considered"][0]["agent"]) == ("ben", "ben")


async def test_agent_with_past_success_is_preferred(server: Server, namespace: str, lead: Agent, ada: Agent) -> None:
    await ada.call("register_agent", max_tasks=50)
    async with joined(server, namespace, "ben", max_tasks=50) as ben:
        for agent, name in ((ada, "ada"), (ben, "ben")):
            for number in range(3):
                await submit(lead, f"Splice rope {number}.", task_type="splicing", assign_to=name, max_retries=0)
                task = await lease(agent)
                await (complete(agent, task) if agent is ben else fail(agent, task))

        async def preferred() -> bool:
            work = {"description": "Splice it.", "task_type": "splicing", "priority": "critical"}
            answer = await lead.call("distribute_task", **work)
            success = {choice["agent"]: choice["success"] for choice in answer["why"]["considered"]}
            return answer["assigned_to"] == "ben" and success["ben"] > 0.5 > success["ada"]

        await wait_until(preferred)


async def test_task_goes_to_the_agent_with_the_closest_description(server: Server, namespace: str, lead: Agent) -> None:
    about = {"baker": "I bake bread, cakes and pastries.", "pilot": "I fly aeroplanes and plan flight routes."}
    async with (
        joined(server, namespace, "baker", description=about["baker"]),
        joined(server, namespace, "pilot", description=about["pilot"]),
    ):
        for description, who in (("Prepare dough for a cake", "baker"), ("Plan the flight to Oslo", "pilot")):
            answer = await lead.call("distribute_task", description=description)
            assert answer["assigned_to"] == who, answer["why"]


async def test_similar_open_tasks_are_shown_only_if_visible_to_the_caller(
    server: Server, namespace: str, lead: Agent, ada: Agent
) -> None:
    await ada.call("register_agent")
    text = "Translate the harbour regulations into French."
    first = await submit(lead, text, required_capabilities=["french"])
    again = await lead.call("distribute_task", description=text, required_capabilities=["french"])
    (similar,) = again["similar_tasks"]
    assert (similar["task_id"], similar["submitted_by"], similar["description"]) == (first, "lead", text)
    assert similar["score"] > 0.99
    other = await lead.call("distribute_task", description="Scrub the deck with sand and water.")
    assert other["similar_tasks"] == []
    hidden = await ada.call("distribute_task", description=text)
    assert hidden["similar_tasks"] == []
    async with joined(server, namespace, "able", capabilities=["french"]) as able:
        shown = await able.call("distribute_task", description=text, required_capabilities=["french"])
        assert first in {task["task_id"] for task in shown["similar_tasks"]}
        for task_id in (first, again["task_id"]):
            await lead.call("cancel_task", task_id=task_id)
        last = await able.call("distribute_task", description=text)
        assert not {first, again["task_id"]} & {task["task_id"] for task in last["similar_tasks"]}


async def test_claim_includes_related_memories_the_agent_may_read(
    server: Server, namespace: str, lead: Agent, ada: Agent
) -> None:
    await ada.call("register_agent")
    async with joined(server, namespace, "ben") as ben:
        own = await ada.store("The anchor winch of the Heron needs oil before use.")
        public = await ben.store("The anchor chain of the Heron is forty metres long.", visibility="public")
        granted = await ben.store("The anchor of the Heron was last weighed in May.", tags=["heron"])
        private = await ben.store("The anchor of the Heron is cursed, tell nobody.")
        await ben.call("share_context_with_agent", target_agent="ada", tags=["heron"])
        await submit(lead, "Weigh the anchor of the Heron.", assign_to="ada")
        (task,) = (await ada.call("get_pending_tasks", with_memories=10))["tasks"]
        found = [hit["memory"]["memory_id"] for hit in task["memories"]]
        assert set(found) == {own, public, granted}
        assert private not in found
        await complete(ada, task)
        await submit(lead, "Weigh the anchor of the Heron once more.", assign_to="ada")
        assert len((await lease(ada, with_memories=1))["memories"]) == 1


async def test_parties_see_all_able_agents_see_part_others_see_nothing(
    server: Server, namespace: str, lead: Agent, ada: Agent
) -> None:
    await ada.call("register_agent", capabilities=["lua"])
    task_id = await submit(lead, "Mend it.", payload={"secret": 1}, required_capabilities=["lua"])
    async with joined(server, namespace, "able", capabilities=["lua"]) as able, joined(server, namespace, "x") as other:
        assert (await show(ada, task_id))["payload"] == (await show(lead, task_id))["payload"] == {"secret": 1}
        seen = await able.call("get_task", task_id=task_id)
        assert (seen["task"]["description"], seen["task"].get("payload"), seen["history"]) == ("Mend it.", None, [])
        with pytest.raises(Refused, match="no task"):
            await show(other, task_id)


async def test_dispatch_assigns_all_tasks_with_few_candidates_a_call(
    service: Service, stack: Stack, namespace: str, lead: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(lead)
    tasks = TaskNamespace(stack.client, namespace)
    await tasks.register(*(f"worker{number}" for number in range(40)), capacity=1)
    for _ in range(31):
        await tasks.submit()
    write, candidates = service.backend.write, list[list[int]]()

    async def recorded(function: str, keys: list[str], **request: Any) -> dict[str, Any]:
        if function == "rm1_task_assign" and request["prefix"] == tasks.keys.prefix:
            candidates.append([len(item["candidates"]) for item in request["items"]])
        return await write(function, keys, **request)

    monkeypatch.setattr(service.backend, "write", recorded)
    await dispatch(service, namespace)
    assert await stack.client.zcard(tasks.keys.unclaimed) == 32
    assert candidates == [[16] * 8] * 4
