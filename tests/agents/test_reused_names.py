"""What belonged to a former holder of a name stays out of reach of the next one, through every tool."""

from __future__ import annotations

import pytest_asyncio
from support.sharing_helpers import SECRET, refusal
from support.stack import Agent, Server, Stack
from support.team_helpers import claim, register, submit

from memory_core.records.keys import Keys
from memory_core.records.task import Task, TaskPriority, TaskState
from memory_core.records.task_kind import TaskKind
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.events.live_feed import watching
from memory_server.operations import admin_view


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def registered(alice: Agent, bob: Agent) -> None:
    """Both agents are registered."""
    await register(alice)
    await register(bob)


async def come_back(agent: Agent) -> None:
    """Leave, and take the name again."""
    await agent.call("unregister_agent")
    await register(agent)


async def test_new_holder_hears_no_event_that_was_for_the_former(alice: Agent, bob: Agent) -> None:
    cursor = (await alice.call("wait_for_events", timeout_seconds=0))["cursor"]
    await bob.call("share_context_with_agent", target_agent="alice", context="island", bidirectional=True)
    await come_back(alice)
    assert (await alice.call("update_agent_heartbeat"))["unread_events"] == 0
    grant = await bob.call("share_context_with_agent", target_agent="alice", context="harbour")
    events = (await alice.call("wait_for_events", cursor=cursor, kinds=["grant"], timeout_seconds=0))["events"]
    assert [event["id"] for event in events] == [grant["grant_id"]]


async def test_dashboard_shows_a_new_holder_nothing_of_the_former(
    alice: Agent, bob: Agent, server: Server, namespace: str
) -> None:
    service, request = await server.runtime.service(), RequestContext(Caller(namespace, "alice"))
    old = (await submit(alice, "Dig.", assign_to="bob"))["task_id"]
    await come_back(alice)
    new = (await submit(alice, "Dig again.", assign_to="bob"))["task_id"]
    board = await admin_view.task_board(service.backend, request.caller)
    assert [task.task_id for task in board.tasks] == [new]
    async for page in watching(service, request, 0.1, 0.0):
        assert {event.id for event in page.events if event.kind == "task"} == {new}
        break
    assert old != new


async def test_new_holder_can_repeat_an_idempotency_key_of_the_former(alice: Agent, bob: Agent) -> None:
    old = await submit(alice, "Dig.", assign_to="bob", idempotency_key="k")
    await come_back(alice)
    new = await submit(alice, "Dig something else.", assign_to="bob", idempotency_key="k")
    assert new["task_id"] != old["task_id"]
    again = await submit(alice, "Dig something else.", assign_to="bob", idempotency_key="k")
    assert again["task_id"] == new["task_id"]


async def test_new_holder_cannot_build_on_or_end_tasks_of_the_former(alice: Agent, bob: Agent) -> None:
    old = (await submit(alice, "Dig.", assign_to="bob"))["task_id"]
    held = await claim(bob)
    await come_back(alice)
    for tool, arguments in (
        ("get_task", {"task_id": old}),
        ("cancel_task", {"task_id": old}),
        ("distribute_task", {"description": "Look.", "depends_on": [old]}),
    ):
        assert (await refusal(alice, tool, **arguments))[0] == "not_found", tool
    ended = await bob.call("complete_task", task_id=old, lease_token=held["lease_token"])
    assert ended["state"] == "completed"


async def test_lease_token_of_the_former_holder_is_void(alice: Agent, bob: Agent) -> None:
    await submit(bob, "Dig.", assign_to="alice")
    held = await claim(alice)
    await come_back(alice)
    lost = await alice.call("update_agent_heartbeat", lease_tokens=[held["lease_token"]])
    assert (lost["leases_renewed"], lost["leases_lost"]) == ({}, [held["task_id"]])


async def test_name_of_a_first_holder_has_no_time_limit(alice: Agent, stack: Stack, namespace: str) -> None:
    task = (await submit(alice, SECRET, assign_to="bob"))["task_id"]
    await register(alice, description="again")
    assert await stack.client.hget(Keys(namespace).agent("alice"), "since") is None
    assert (await alice.call("get_task", task_id=task))["task"]["description"] == SECRET


def test_party_to_an_old_task_is_who_holds_it_or_held_it_last() -> None:
    def task(**changed: object) -> Task:
        made = {
            "id": "t", "state": TaskState.COMPLETED, "description": "x", "type": "general",
            "priority": TaskPriority.MEDIUM, "kind": TaskKind((), 0, ""), "submitter": "boss", "assigned": None,
            "holders": ("ann", "ben"), "avoid": (), "attempt": 1, "max_retries": 3, "lease_seconds": 300,
            "created_at": 100.0, "leased_at": 150.0,
        }  # fmt: skip
        return Task(**made | changed)  # pyright: ignore[reportArgumentType]

    assert [task().is_party(name, 100.0) for name in ("boss", "ann", "ben", "eve")] == [True, True, True, False]
    assert [task().is_party(name, 120.0) for name in ("boss", "ann", "ben")] == [False, False, True]
    assert [task().is_party(name, 160.0) for name in ("boss", "ann", "ben")] == [False, False, False]
    assert task(assigned="ann").is_party("ann", 160.0)
    pinned = TaskKind((), 0, "ann")
    assert task(kind=pinned, state=TaskState.WAITING).is_party("ann", 160.0)
    assert not task(kind=pinned, holders=("ben",)).is_party("ann", 160.0)
