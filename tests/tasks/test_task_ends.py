"""Tasks end exactly once. How agents list tasks, wait for them and retry requests."""

from __future__ import annotations

import asyncio
import json

from support import task_helpers
from support.embedder_fixtures import wait_until
from support.stack import Agent, Stack, serving
from support.task_helpers import WAIT, claim, code, complete, events, joined, lease, show, submit

quick, lead, ada, ben = task_helpers.quick, task_helpers.lead, task_helpers.ada, task_helpers.ben


async def test_holder_cannot_complete_a_cancelled_task(lead: Agent, ada: Agent, ben: Agent) -> None:
    task_id = await submit(lead, assign_to="ada")
    task = await lease(ada)
    assert await code(ada, "cancel_task", task_id=task_id) == "not_found"
    assert (await lead.call("cancel_task", task_id=task_id, reason="The sea is calm."))["state"] == "cancelled"
    assert await code(ada, "complete_task", task_id=task_id, lease_token=task["lease_token"]) == "lease_lost"
    assert (await ada.call("update_agent_heartbeat", lease_tokens=[task["lease_token"]]))["leases_lost"] == [task_id]
    assert await claim(ada) == await claim(ben) == []
    shown = await show(lead, task_id)
    assert (shown["state"], shown["error"]) == ("cancelled", "The sea is calm.")
    assert await code(lead, "cancel_task", task_id=task_id) == "conflict"


async def test_task_is_completed_once(lead: Agent, ada: Agent) -> None:
    task_id = await submit(lead)
    task = await lease(ada)
    answers = await asyncio.gather(
        *(ada.raw("complete_task", task_id=task_id, lease_token=task["lease_token"], result=n) for n in range(8))
    )
    assert sorted(bool(answer.is_error) for answer in answers) == [False] + [True] * 7
    assert (await events(lead, task_id)).count("completed") == 1
    assert await code(ada, "fail_task", task_id=task_id, lease_token=task["lease_token"], error="no") == "lease_lost"


async def test_concurrent_claims_lease_a_task_once(lead: Agent, ada: Agent) -> None:
    for number in range(3):
        await submit(lead, f"Haul rope {number}.")
    answers = await asyncio.gather(*(claim(ada, limit=3) for _ in range(8)))
    claimed = [task["task_id"] for tasks in answers for task in tasks]
    assert len(claimed) == len(set(claimed)) == 3


async def test_repeated_idempotency_key_submits_one_task(lead: Agent, ada: Agent) -> None:
    task = {"description": "Weigh the anchor.", "payload": {"n": 1}, "idempotency_key": "k"}
    answers = await asyncio.gather(*(lead.call("distribute_task", **task) for _ in range(5)))
    assert len({answer["task_id"] for answer in answers}) == 1
    assert sorted(bool(answer.get("replayed")) for answer in answers) == [False] + [True] * 4
    assert await code(lead, "distribute_task", **task | {"payload": {"n": 2}}) == "conflict"
    assert (await ada.call("distribute_task", **task))["task_id"] != answers[0]["task_id"]
    await complete(ada, await lease(ada))
    assert (await lead.call("distribute_task", **task)).get("replayed")


# listing and waiting


async def test_listing_tasks_leases_nothing(lead: Agent, ada: Agent) -> None:
    task_id = await submit(lead)
    for _ in range(2):
        (seen,) = await claim(ada, claim=False)
        assert (seen["task_id"], seen["state"], seen.get("lease_token")) == (task_id, "pending", None)
    assert (await lease(ada))["task_id"] == task_id


async def test_waiting_claim_returns_when_a_task_arrives(lead: Agent, ada: Agent) -> None:
    waiting = asyncio.create_task(claim(ada, wait_seconds=WAIT))
    assert await claim(ada) == []
    task_id = await submit(lead)
    assert [task["task_id"] for task in await waiting] == [task_id]
    assert await claim(ada, wait_seconds=0.05) == []


async def test_unclaimed_assignment_goes_to_a_free_agent(stack: Stack, namespace: str) -> None:
    async with (
        serving(stack.redis.url, tasks={"claim_seconds": 0.1}) as server,
        joined(server, namespace, "ada") as ada,
        joined(server, namespace, "ben") as ben,
    ):
        task_id = await submit(ada)
        idle, free = (ada, ben) if (await show(ada, task_id))["assigned_to"] == "ada" else (ben, ada)
        await wait_until(lambda: claim(free))
        assert (await show(ada, task_id))["state"] == "leased"
        assert await claim(idle) == []


async def test_lists_and_objects_are_accepted_as_json_text(lead: Agent, ada: Agent) -> None:
    await ada.call("register_agent", capabilities='["lua", "sql"]', max_tasks=5)
    first = await submit(lead, required_capabilities="lua,sql", payload='{"n": 1}')
    await submit(lead, depends_on=json.dumps([first]))
    task = await lease(ada)
    assert task["payload"] == {"n": 1}
    beat = await ada.call("update_agent_heartbeat", lease_tokens=json.dumps([task["lease_token"]]))
    assert list(beat["leases_renewed"]) == [first]
    assert (await complete(ada, task, result='{"ok": true}'))["state"] == "completed"
    assert (await show(lead, first))["result"] == {"ok": True}
    assert len((await lead.call("list_tasks", states="completed,pending"))["tasks"]) == 2
