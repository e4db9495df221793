"""The life of a task over MCP: pending, leased, retried, dead or cancelled, never completed twice."""

from __future__ import annotations

import json
import time

import pytest
from support import task_helpers
from support.embedder_fixtures import wait_until
from support.stack import Agent, Server
from support.task_helpers import UNKNOWN, claim, code, complete, events, fail, joined, lease, show, state, submit

from memory_core.records.times import parse_time
from memory_server.operations.team_sweeper import sweep_team

quick, lead, ada, ben = task_helpers.quick, task_helpers.lead, task_helpers.ada, task_helpers.ben


def until(task: dict[str, str]) -> float:
    """The end of a task's lease."""
    return parse_time(task["lease_until"], "lease_until")


async def test_task_history_shows_submitted_assigned_leased_completed(lead: Agent, ada: Agent) -> None:
    answer = await lead.call("distribute_task", description="Weigh the anchor.", payload={"chain": 5})
    assert (answer["state"], answer["assigned_to"]) == ("pending", "ada")
    task = await lease(ada)
    assert task["task_id"] == answer["task_id"]
    assert (task["state"], task["attempt"], task["payload"]) == ("leased", 1, {"chain": 5})
    assert until(task) > time.time()
    ended = await complete(ada, task, result={"weight": 3}, metrics={"duration_ms": 12, "tokens": 7})
    assert ended["state"] == "completed"
    shown = await show(lead, task["task_id"])
    assert (shown["state"], shown["result"], shown["metrics"]) == (
        "completed",
        {"weight": 3},
        {"duration_ms": 12, "tokens": 7},
    )
    assert shown["held_by"] == ["ada"]
    assert shown["finished_at"]
    assert await events(lead, task["task_id"]) == ["submitted", "assigned", "leased", "completed"]
    assert (await lead.call("list_tasks", states=["completed"]))["tasks"] == [shown]
    assert (await lead.call("list_tasks", states=["pending"]))["tasks"] == []


async def test_result_can_be_stored_as_a_memory(lead: Agent, ada: Agent) -> None:
    await submit(lead)
    ended = await complete(ada, await lease(ada), result="The anchor weighs three tonnes.", store_result=True)
    memory = (await ada.call("retrieve_memory", memory_id=ended["memory_id"]))["memory"]
    content = "Weigh the anchor.\n\nResult: The anchor weighs three tonnes."
    assert (memory["content"], memory["memory_type"]) == (content, "task")


# dependencies


async def test_task_waits_until_its_dependencies_are_completed(lead: Agent, ada: Agent) -> None:
    first, second = await submit(lead, "Find the map."), await submit(lead, "Find the ship.")
    answer = await lead.call("distribute_task", description="Sail.", depends_on=[first, second])
    last = answer["task_id"]
    assert answer["state"] == "waiting"
    assert "depends on" in answer["why"]["reason"]
    tasks = await claim(ada, limit=5)
    assert {task["task_id"] for task in tasks} == {first, second}
    await complete(ada, tasks[0])
    assert await state(lead, last) == "waiting"
    await complete(ada, tasks[1])
    assert (await lease(ada))["task_id"] == last
    assert "unblocked" in await events(lead, last)


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_dependents_of_an_uncompleted_task_are_cancelled(lead: Agent, ada: Agent, how: str) -> None:
    first = await submit(lead, "Find the map.")
    second = await submit(lead, "Sail.", depends_on=[first])
    third = await submit(lead, "Dig.", depends_on=[second])
    if how == "failed":
        await fail(ada, await lease(ada), retry=False)
    else:
        await lead.call("cancel_task", task_id=first)
    assert await state(lead, first) == ("dead" if how == "failed" else "cancelled")

    async def cancelled() -> bool:
        return [await state(lead, task) for task in (second, third)] == ["cancelled", "cancelled"]

    await wait_until(cancelled)
    assert first in (await lead.call("get_task", task_id=second))["history"][-1]["error"]
    assert await code(lead, "distribute_task", description="Dig again.", depends_on=[first]) == "conflict"


async def test_dependency_on_an_unknown_task_is_refused(lead: Agent) -> None:
    assert await code(lead, "distribute_task", description="x", depends_on=[UNKNOWN]) == "not_found"
    assert await code(lead, "distribute_task", description="x", task_id=UNKNOWN, depends_on=[UNKNOWN]) == (
        "invalid_argument"
    )
    tools = (await lead.client.list_tools()).tools
    assert [tool.name for tool in tools if "depends_on" in json.dumps(tool.input_schema)] == ["distribute_task"]


async def test_requeued_task_waits_for_its_dependencies_again(lead: Agent, ada: Agent) -> None:
    first = await submit(lead, "Find the map.")
    task = await lease(ada)
    last = await submit(lead, "Sail.", depends_on=[first], deadline=time.time() + 1.0)
    await wait_until(lambda: _is(lead, last, "dead", prod=ada))
    assert (await lead.call("requeue_task", task_id=last))["state"] == "waiting"
    assert await claim(ada) == []
    await complete(ada, task)
    assert (await lease(ada))["task_id"] == last


# eligibility


async def test_task_waits_for_an_agent_with_the_capability(
    quick: Server, namespace: str, lead: Agent, ada: Agent
) -> None:
    demands = {"required_capabilities": ["Lua", "sql"], "min_context_window": 1000}
    answer = await lead.call("distribute_task", description="Mend the script.", **demands)
    assert "lua, sql, a context window of 1000" in answer["why"]["reason"]
    assert await claim(ada) == []
    for profile in ({"capabilities": ["lua", "sql"], "context_window": 999}, {"capabilities": ["lua"]}):
        await ada.call("register_agent", **profile)
        assert await claim(ada) == []
    async with joined(quick, namespace, "zoe", capabilities=["sql", "LUA", "c"], context_window=1000) as zoe:
        assert (await show(lead, answer["task_id"]))["assigned_to"] == "zoe"
        assert (await lease(zoe))["task_id"] == answer["task_id"]


async def test_task_assigned_to_an_agent_is_reserved_for_it(lead: Agent, ada: Agent, ben: Agent) -> None:
    task = await submit(lead, assign_to="ben")
    assert await claim(ada) == []
    assert (await claim(ben, claim=False))[0]["task_id"] == task
    assert (await lease(ben))["task_id"] == task


async def test_agent_holds_at_most_max_tasks(lead: Agent, ada: Agent) -> None:
    await ada.call("register_agent", max_tasks=2)
    for number in range(4):
        await submit(lead, f"Haul rope {number}.")
    first = await ada.call("get_pending_tasks", limit=10, with_memories=0)
    assert (len(first["tasks"]), first["open_tasks"], first["max_tasks"]) == (2, 2, 2)
    assert await claim(ada, limit=10) == []
    await complete(ada, first["tasks"][0])
    assert len(await claim(ada, limit=10)) == 1


async def test_draining_agent_finishes_and_takes_no_more(lead: Agent, ada: Agent) -> None:
    await submit(lead)
    task = await lease(ada)
    await ada.call("update_agent_heartbeat", status="draining")
    answer = await lead.call("distribute_task", description="Another.")
    assert answer.get("assigned_to") is None
    assert await claim(ada) == []
    assert (await complete(ada, task))["state"] == "completed"


async def test_unregistered_agent_gets_no_tasks(lead: Agent) -> None:
    await submit(lead)
    assert await code(lead, "get_pending_tasks") == "not_found"
    assert await code(lead, "update_agent_heartbeat") == "not_found"


# leases


async def test_expired_lease_goes_to_another_agent_and_voids_its_token(lead: Agent, ada: Agent, ben: Agent) -> None:
    task_id = await submit(lead, lease_seconds=0.2, assign_to=None)
    holder, other = (ada, ben) if (await show(lead, task_id))["assigned_to"] == "ada" else (ben, ada)
    old = await lease(holder)
    new = await lease(other)
    assert (new["task_id"], new["attempt"]) == (task_id, 1)
    assert [entry["op"] for entry in new["earlier_failures"]] == ["expired"]
    for tool, more in (("complete_task", {}), ("fail_task", {"error": "late"})):
        assert await code(holder, tool, task_id=task_id, lease_token=old["lease_token"], **more) == "lease_lost"
    beat = await holder.call("update_agent_heartbeat", lease_tokens=[old["lease_token"]])
    assert (beat["leases_renewed"], beat["leases_lost"]) == ({}, [task_id])
    fences = [entry["fence"] for entry in (await lead.call("get_task", task_id=task_id))["history"] if "fence" in entry]
    assert fences == sorted(fences)


async def test_heartbeats_keep_a_lease(lead: Agent, ada: Agent, ben: Agent) -> None:
    task_id = await submit(lead, lease_seconds=2, assign_to="ada")
    task = await lease(ada)

    async def outlived() -> bool:
        beat = await ada.call("update_agent_heartbeat", lease_tokens=[task["lease_token"]])
        assert parse_time(beat["leases_renewed"][task_id], "until") >= until(task)
        return time.time() > until(task) + 0.2

    await wait_until(outlived)
    assert await claim(ben) == []
    assert (await complete(ada, task))["state"] == "completed"


async def test_heartbeat_without_leases_keeps_the_agent_alive(ada: Agent) -> None:
    beat = await ada.call("update_agent_heartbeat")
    assert (beat["leases_renewed"], beat["leases_lost"], beat["pending_tasks"]) == ({}, [], 0)


async def test_task_of_a_silent_agent_goes_to_others_when_its_lease_ends(
    quick: Server, namespace: str, lead: Agent, ada: Agent, ben: Agent
) -> None:
    await ada.call("register_agent", heartbeat_seconds=0.2)
    await ben.call("update_agent_heartbeat", status="draining")
    task_id = await submit(lead, lease_seconds=1.5)
    held = await lease(ada)
    await ben.call("update_agent_heartbeat", status="active")
    await ada.call("update_agent_heartbeat", metrics={"done": "half of the hull"})
    service = await quick.runtime.service()

    async def died() -> bool:
        await sweep_team(service, namespace)
        agents = (await lead.call("list_agents", alive_only=False))["agents"]
        return any(agent["agent_id"] == "ada" and agent["status"] == "dead" for agent in agents)

    await wait_until(died)
    assert time.time() < until(held)
    assert await state(lead, task_id) == "leased"
    task = await lease(ben)
    assert time.time() > until(held)
    assert task["task_id"] == task_id
    assert task["progress"] == {"done": "half of the hull"}
    assert [entry["op"] for entry in task["earlier_failures"]] == ["expired"]


# failures


async def test_failed_task_is_retried_by_another_agent_after_a_pause(lead: Agent, ada: Agent, ben: Agent) -> None:
    task_id = await submit(lead, assign_to=None)
    first, second = (ada, ben) if (await show(lead, task_id))["assigned_to"] == "ada" else (ben, ada)
    failed = await fail(first, await lease(first), handoff="The chain is off; only the winch is left.")
    assert failed["state"] == "reassigned"
    assert parse_time(failed["next_attempt_at"], "next") > parse_time((await show(lead, task_id))["created_at"], "at")
    assert await state(lead, task_id) in {"retrying", "pending"}
    task = await lease(second)
    assert (task["task_id"], task["attempt"]) == (task_id, 2)
    assert task["handoff"] == "The chain is off; only the winch is left."
    assert [entry["error"] for entry in task["earlier_failures"]] == ["The chain is stuck."]
    await complete(second, task)


async def test_lone_agent_retries_its_failed_task_with_longer_pauses(lead: Agent, ada: Agent) -> None:
    task_id, pauses = await submit(lead, max_retries=5), list[float]()
    for attempt in (1, 2, 3, 4):
        task = await lease(ada)
        assert task["attempt"] == attempt
        failed = await fail(ada, task)
        assert failed["state"] == "retrying"
        at = (await lead.call("get_task", task_id=task_id))["history"][-1]["at"]
        pauses.append(parse_time(failed["next_attempt_at"], "next") - parse_time(at, "at"))
    longest = [0.1, 0.2, 0.4, 0.4]
    assert all(most / 2 - 0.01 <= pause <= most + 0.01 for pause, most in zip(pauses, longest, strict=True)), pauses


async def test_dead_task_stays_in_dead_letters_until_requeued(lead: Agent, ada: Agent) -> None:
    task_id = await submit(lead, max_retries=1)
    assert (await fail(ada, await lease(ada)))["state"] == "retrying"
    assert (await fail(ada, await lease(ada), "The winch broke."))["state"] == "dead"
    (letter,) = (await lead.call("list_tasks", states="dead"))["tasks"]
    assert (letter["task_id"], letter["error"], letter["attempt"]) == (task_id, "The winch broke.", 2)
    history = (await lead.call("get_task", task_id=task_id))["history"]
    assert [entry["error"] for entry in history if entry["op"] == "failed"] == [
        "The chain is stuck.",
        "The winch broke.",
    ]
    assert await code(ada, "requeue_task", task_id=task_id) == "not_found"
    assert (await lead.call("requeue_task", task_id=task_id))["state"] == "pending"
    assert await code(lead, "requeue_task", task_id=task_id) == "conflict"
    assert (await lead.call("list_tasks", states="dead"))["tasks"] == []
    task = await lease(ada)
    assert task["attempt"] == 1
    await complete(ada, task)


async def test_non_retryable_failure_is_not_retried(lead: Agent, ada: Agent) -> None:
    await submit(lead, max_retries=9)
    assert (await fail(ada, await lease(ada), retry=False))["state"] == "dead"


async def test_silences_and_one_failure_do_not_kill_a_task(lead: Agent, ada: Agent) -> None:
    task_id = await submit(lead, max_retries=1, lease_seconds=0.1)
    for _ in range(3):
        await lease(ada)
    task = await lease(ada)
    assert (await fail(ada, task))["state"] == "retrying"
    assert (await complete(ada, await lease(ada)))["state"] == "completed"
    assert (await events(lead, task_id)).count("expired") == 3


async def test_late_result_is_accepted_until_another_agent_has_the_task(lead: Agent, ada: Agent) -> None:
    await submit(lead, lease_seconds=0.1)
    task = await lease(ada)
    await wait_until(lambda: _passed(until(task)))
    assert (await complete(ada, task, result="late"))["state"] == "completed"
    assert (await show(lead, task["task_id"]))["result"] == "late"


async def _passed(at: float) -> bool:
    return time.time() > at


async def test_leased_task_ends_at_its_deadline(lead: Agent, ada: Agent) -> None:
    task_id = await submit(lead, deadline=time.time() + 0.5)
    task = await lease(ada)
    await wait_until(lambda: _is(lead, task_id, "dead", prod=ada))
    assert "deadline" in (await show(lead, task_id))["error"]
    assert await code(ada, "complete_task", task_id=task_id, lease_token=task["lease_token"]) == "lease_lost"


async def _is(lead: Agent, task_id: str, wanted: str, *, prod: Agent) -> bool:
    """Whether a task reaches a state. A claim triggers what is due."""
    assert await claim(prod) == []
    return await state(lead, task_id) == wanted
