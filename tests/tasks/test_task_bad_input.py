"""Task and agent tools refuse bad input with a typed error, reveal nothing about other agents and change nothing."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from support.audit_helpers import ChangeCount
from support.stack import Agent, Server, Stack, in_own_task
from support.task_helpers import UNKNOWN, Answer, claim, code, complete, events, fail, joined, lease, show, submit

from memory_core.records.keys import Keys

NAMESPACE = "bad-tasks"
INVALID, MISSING, LOST, TAKEN = "invalid_argument", "not_found", "lease_lost", "conflict"
TASK, TOKEN, OTHERS, OTHERS_TOKEN = "<task>", "<token>", "<others>", "<others token>"
DEEP = json.loads("[" * 90 + "]" * 90)


@dataclass(frozen=True)
class Ground:
    """Two tasks that ben submitted: ada holds one, ben the other. No case may change them."""

    stack: Stack
    ada: Agent
    ben: Agent
    ids: dict[str, str]
    changes: ChangeCount

    async def state(self) -> list[Any]:
        """Return all tasks of the namespace, their queues and the number of changes in the audit."""
        keys, client = Keys(NAMESPACE), self.stack.client
        found = [
            (name, sorted((await client.hgetall(name)).items()))
            for name in sorted([name async for name in client.scan_iter(match=keys.task("*"), count=1000)])
        ]
        queues = [await client.zrange(key, 0, -1, withscores=True) for key in (keys.leases, keys.unclaimed)]
        return [found, queues, await self.changes.read()]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ground(stack: Stack) -> AsyncGenerator[Ground]:
    """One namespace for all cases."""
    async with AsyncExitStack() as opened:
        ada, ben = [
            await opened.enter_async_context(in_own_task(joined(stack.server, NAMESPACE, name, max_tasks=9)))
            for name in ("ada", "ben")
        ]
        ids: dict[str, str] = {}
        for agent, name, task, token in ((ada, "ada", TASK, TOKEN), (ben, "ben", OTHERS, OTHERS_TOKEN)):
            await submit(ben, f"For {name} alone.", assign_to=name, lease_seconds=3600)
            held = await lease(agent)
            ids |= {task: held["task_id"], token: held["lease_token"]}
        yield Ground(stack, ada, ben, ids, ChangeCount(stack.client, Keys(NAMESPACE)))


def fill_in(value: Any, ids: dict[str, str]) -> Any:
    """Replace placeholders by real ids and tokens."""
    if isinstance(value, dict):
        return {name: fill_in(item, ids) for name, item in value.items()}
    if isinstance(value, list):
        return [fill_in(item, ids) for item in value]
    return ids.get(value, value) if isinstance(value, str) else value


def new(**overrides: Any) -> dict[str, Any]:
    """A valid submission with some arguments replaced."""
    return {"description": "Weigh the anchor.", **overrides}


def end(**overrides: Any) -> dict[str, Any]:
    """Valid arguments to end ada's task, with some replaced."""
    return {"task_id": TASK, "lease_token": TOKEN, **overrides}


CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("no description", "distribute_task", {}, INVALID),
    ("an empty description", "distribute_task", new(description=" \n"), INVALID),
    ("a NUL in the description", "distribute_task", new(description="a\0b"), INVALID),
    ("a huge description", "distribute_task", new(description="x" * 20_000), INVALID),
    ("a description that is a number", "distribute_task", new(description=7), INVALID),
    ("an unknown argument", "distribute_task", new(urgent=True), INVALID),
    ("an id chosen by the caller", "distribute_task", new(task_id=UNKNOWN), INVALID),
    ("a payload over the cap", "distribute_task", new(payload={"x": "y" * 70_000}), INVALID),
    ("a payload that is not an object", "distribute_task", new(payload=[1, 2]), INVALID),
    ("a payload that is not JSON", "distribute_task", new(payload="{"), INVALID),
    ("a payload too deep", "distribute_task", new(payload={"x": DEEP}), INVALID),
    ("an unknown priority", "distribute_task", new(priority="urgent"), INVALID),
    ("a priority that only memories have", "distribute_task", new(priority="archive"), INVALID),
    ("an empty capability", "distribute_task", new(required_capabilities=[" "]), INVALID),
    ("a capability with a separator", "distribute_task", new(required_capabilities=["a\x1fb"]), INVALID),
    ("too many capabilities", "distribute_task", new(required_capabilities=[f"c{n}" for n in range(65)]), INVALID),
    ("many capabilities", "distribute_task", new(required_capabilities=[f"c{n}" for n in range(17)]), INVALID),
    ("large capabilities", "distribute_task", new(required_capabilities=[f"{n:0206}" for n in range(5)]), INVALID),
    ("a capability too long", "distribute_task", new(required_capabilities=["c" * 300]), INVALID),
    ("an invalid agent name", "distribute_task", new(assign_to="not/a/name"), INVALID),
    ("an unknown agent", "distribute_task", new(assign_to="nobody"), MISSING),
    ("a negative window", "distribute_task", new(min_context_window=-1), INVALID),
    ("a dependency that is not an id", "distribute_task", new(depends_on=["*"]), MISSING),
    ("an unknown dependency", "distribute_task", new(depends_on=[UNKNOWN]), MISSING),
    ("too many dependencies", "distribute_task", new(depends_on=[UNKNOWN] * 300), INVALID),
    ("negative retries", "distribute_task", new(max_retries=-1), INVALID),
    ("too many retries", "distribute_task", new(max_retries=101), INVALID),
    ("a lease of zero seconds", "distribute_task", new(lease_seconds=0), INVALID),
    ("a lease of 30 years", "distribute_task", new(lease_seconds=1e9), INVALID),
    ("a deadline in the past", "distribute_task", new(deadline="2001-01-01"), INVALID),
    ("a deadline that is not a time", "distribute_task", new(deadline="when the cows come home"), INVALID),
    ("a huge idempotency key", "distribute_task", new(idempotency_key="k" * 300), INVALID),
    ("no tasks at all", "get_pending_tasks", {"limit": 0}, INVALID),
    ("too many tasks", "get_pending_tasks", {"limit": 101}, INVALID),
    ("a wait too long", "get_pending_tasks", {"wait_seconds": 301}, INVALID),
    ("a negative wait", "get_pending_tasks", {"wait_seconds": -1}, INVALID),
    ("too many memories", "get_pending_tasks", {"with_memories": 21}, INVALID),
    ("tasks for another", "get_pending_tasks", {"agent_id": "ben"}, "forbidden"),
    ("tasks for an unknown agent", "get_pending_tasks", {"agent_id": "nobody"}, "forbidden"),
    ("no token", "complete_task", {"task_id": TASK}, INVALID),
    ("an empty token", "complete_task", end(lease_token=""), LOST),
    ("a token of another task", "complete_task", end(lease_token=OTHERS_TOKEN), LOST),
    ("a guessed token", "complete_task", end(lease_token=f"{UNKNOWN}.1.0123456789abcdef"), LOST),
    ("a token with a NUL", "complete_task", end(lease_token="a\0b"), LOST),
    ("a huge token", "complete_task", end(lease_token="t" * 100_000), LOST),
    ("a task id that is not an id", "complete_task", end(task_id="*"), MISSING),
    ("a task id that looks like a key", "complete_task", end(task_id="x}:y{"), MISSING),
    ("another agent's task with the caller's token", "complete_task", end(task_id=OTHERS), MISSING),
    (
        "another agent's task with that task's token",
        "complete_task",
        end(task_id=OTHERS, lease_token=OTHERS_TOKEN),
        MISSING,
    ),
    ("a result over the cap", "complete_task", end(result="x" * 70_000), INVALID),
    ("a result too deep", "complete_task", end(result=DEEP), INVALID),
    ("metrics that are not an object", "complete_task", end(metrics=3), INVALID),
    ("no error", "fail_task", end(), INVALID),
    ("an empty error", "fail_task", end(error=""), INVALID),
    ("a huge error", "fail_task", end(error="x" * 20_000), INVALID),
    ("a NUL in the handoff", "fail_task", end(error="x", handoff="a\0b"), INVALID),
    ("failing another agent's task", "fail_task", end(task_id=OTHERS, lease_token=OTHERS_TOKEN, error="x"), MISSING),
    ("failing with a guessed token", "fail_task", end(lease_token="guess", error="x"), LOST),
    ("showing a task id that is not an id", "get_task", {"task_id": "1"}, MISSING),
    ("showing an unknown task", "get_task", {"task_id": UNKNOWN}, MISSING),
    ("cancelling another agent's task", "cancel_task", {"task_id": OTHERS}, MISSING),
    ("cancelling a task the caller holds but did not submit", "cancel_task", {"task_id": TASK}, MISSING),
    ("requeueing another agent's task", "requeue_task", {"task_id": OTHERS}, MISSING),
    ("an unknown state", "list_tasks", {"states": ["lost"]}, INVALID),
    ("a list limit over the maximum", "list_tasks", {"limit": 1000}, INVALID),
    ("a heartbeat for another", "update_agent_heartbeat", {"agent_id": "ben"}, "forbidden"),
    ("a heartbeat for an unknown agent", "update_agent_heartbeat", {"agent_id": "nobody"}, "forbidden"),
    ("a heartbeat with status dead", "update_agent_heartbeat", {"status": "dead"}, INVALID),
    ("an unknown status", "update_agent_heartbeat", {"status": "asleep"}, INVALID),
    ("a load above one", "update_agent_heartbeat", {"load": 1.5}, INVALID),
    ("too many tokens", "update_agent_heartbeat", {"lease_tokens": [f"t{n}" for n in range(1001)]}, INVALID),
    ("metrics over the cap", "update_agent_heartbeat", {"metrics": {"x": "y" * 20_000}}, INVALID),
    ("registering another agent", "register_agent", {"agent_id": "ben"}, "forbidden"),
    ("an unknown agent type", "register_agent", {"agent_type": "robot"}, INVALID),
    ("no capacity", "register_agent", {"max_tasks": 0}, INVALID),
    ("a heartbeat interval over the maximum", "register_agent", {"heartbeat_seconds": 1e6}, INVALID),
    ("an agent with a negative context window", "register_agent", {"context_window": -1}, INVALID),
    ("unregistering another agent", "unregister_agent", {"agent_id": "ben"}, "forbidden"),
    ("a transfer to an unknown agent", "unregister_agent", {"memories": "transfer", "transfer_to": "nobody"}, MISSING),
    ("a transfer without a target", "unregister_agent", {"memories": "transfer"}, INVALID),
    ("a transfer to the caller", "unregister_agent", {"memories": "transfer", "transfer_to": "ada"}, INVALID),
]


@pytest.mark.parametrize(
    ("tool", "arguments", "outcome"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
async def test_bad_input_is_refused_by_type_and_changes_nothing(
    ground: Ground, tool: str, arguments: dict[str, Any], outcome: str
) -> None:
    before = await ground.state()
    assert await code(ground.ada, tool, **fill_in(arguments, ground.ids)) == outcome
    assert await ground.state() == before


async def test_invalid_lease_tokens_renew_nothing(ground: Ground) -> None:
    before = await ground.state()
    odd = [
        ".",
        "a.b.c",
        "x" * 500,
        f"{ground.ids[TASK]}.1.guess",
        "mem:x}..",
        "\u202e.1.2",
        ground.ids[OTHERS_TOKEN],
    ]
    beat = await ground.ada.call("update_agent_heartbeat", lease_tokens=odd)
    assert beat["leases_renewed"] == {}
    assert len(beat["leases_lost"]) == len(odd)
    assert all(len(lost) <= 64 for lost in beat["leases_lost"])
    assert await ground.state() == before


async def test_forbidden_and_unknown_task_give_identical_bytes(ground: Ground, stack: Stack) -> None:
    forbidden, token = ground.ids[OTHERS], ground.ids[OTHERS_TOKEN]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("get_task", {"task_id": "ID"}),
        ("cancel_task", {"task_id": "ID"}),
        ("requeue_task", {"task_id": "ID"}),
        ("complete_task", {"task_id": "ID", "lease_token": "ID.1.x"}),
        ("complete_task", {"task_id": "ID", "lease_token": token}),
        ("complete_task", {"task_id": "ID", "lease_token": token, "result": "x" * 70_000}),
        ("fail_task", {"task_id": "ID", "lease_token": "ID.1.x", "error": "x"}),
        ("distribute_task", {"description": "x", "depends_on": ["ID"]}),
        ("update_agent_heartbeat", {"lease_tokens": ["ID.1.x"]}),
    ]
    async with stack.server.agent("stranger", NAMESPACE) as stranger:
        for agent in (ground.ada, stranger):
            for tool, arguments in calls:
                answers = [await _bytes(agent, tool, arguments, task_id) for task_id in (forbidden, UNKNOWN)]
                assert answers[0] == answers[1], tool
    assert await events(ground.ben, forbidden) == ["submitted", "assigned", "leased"]


async def _bytes(agent: Agent, tool: str, arguments: dict[str, Any], task_id: str) -> str:
    request = json.loads(json.dumps(arguments).replace("ID", task_id))
    return (await agent.raw(tool, **request)).model_dump_json().replace(task_id, "ID")


async def test_only_the_holder_ends_a_task_with_the_current_token(server: Server, namespace: str) -> None:
    async with AsyncExitStack() as opened:
        lead, ada, ben = [
            await opened.enter_async_context(joined(server, namespace, name)) for name in ("lead", "ada", "ben")
        ]
        task_id = await submit(lead, assign_to="ada")
        task = await lease(ada)
        forged = [_forged(task, fence=1), _forged(task, secret="0" * 16), _forged(task, task_id=UNKNOWN)]
        for token in forged:
            assert await code(ada, "complete_task", task_id=task_id, lease_token=token) == LOST
        for agent in (ben, lead):
            assert await code(agent, "complete_task", task_id=task_id, lease_token=task["lease_token"]) == MISSING
            beat = await agent.call("update_agent_heartbeat", lease_tokens=[task["lease_token"]])
            assert beat["leases_lost"] == [task_id]
        assert (await complete(ada, task, result="done"))["state"] == "completed"
        for tool, more in (("complete_task", {"result": "again"}), ("fail_task", {"error": "after all"})):
            assert await code(ada, tool, task_id=task_id, lease_token=task["lease_token"], **more) == LOST
        shown = await show(lead, task_id)
        assert (shown["state"], shown["result"]) == ("completed", "done")


def _forged(task: Answer, *, fence: int = 0, secret: str = "", task_id: str = "") -> str:
    """Return the task's token with one part changed."""
    head, number, rest = task["lease_token"].split(".")
    return f"{task_id or head}.{int(number) + fence}.{secret or rest}"


async def test_token_of_an_earlier_attempt_is_refused_from_the_same_agent(server: Server, namespace: str) -> None:
    async with joined(server, namespace, "ada") as ada:
        task_id = await submit(ada, lease_seconds=0.1)
        old, new_lease = await lease(ada), await lease(ada)
        assert old["task_id"] == new_lease["task_id"] == task_id
        assert await code(ada, "complete_task", task_id=task_id, lease_token=old["lease_token"]) == LOST
        failing = {"task_id": task_id, "lease_token": old["lease_token"], "error": "x"}
        assert await code(ada, "fail_task", **failing) == LOST


async def test_task_that_no_agent_can_do_is_accepted_with_a_reason(server: Server, namespace: str) -> None:
    async with joined(server, namespace, "ada", capabilities=["knots"]) as ada:
        answer = await ada.call("distribute_task", description="Fly.", required_capabilities=["wings"])
        assert (answer["state"], answer.get("assigned_to")) == ("pending", None)
        assert "no living agent with wings" in answer["why"]["reason"]
        assert await claim(ada) == []


async def test_depending_on_a_failed_task_is_refused(server: Server, namespace: str) -> None:
    async with joined(server, namespace, "ada") as ada:
        task_id = await submit(ada, max_retries=0)
        await fail(ada, await lease(ada))
        assert await code(ada, "distribute_task", **new(depends_on=[task_id])) == TAKEN
        assert await code(ada, "cancel_task", task_id=task_id) == TAKEN
        await ada.call("requeue_task", task_id=task_id)
        await ada.call("distribute_task", **new(depends_on=[task_id], deadline=time.time() + 60))
