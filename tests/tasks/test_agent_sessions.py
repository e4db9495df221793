"""Calls keep an agent and its leases alive, and a new session of an agent gets its work back."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest
from support import task_helpers
from support.dashboard_helpers import PAGE
from support.embedder_fixtures import wait_until
from support.stack import Agent, Server, Stack
from support.stdio import Pipe, stdio_pipe
from support.task_helpers import claim, code, complete, joined, lease, show, state, submit

from memory_core.records.times import parse_time
from memory_core.settings.settings import Settings
from memory_server.agents.registry import register_agent
from memory_server.contract.task_arguments import PendingArguments, RegisterArguments
from memory_server.contract.tasks import ClaimedTask
from memory_server.engine.presence import AgentSession
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.operations.team_sweeper import sweep_team
from memory_server.service import Service
from memory_server.tasks.leases import get_pending_tasks

quick, lead = task_helpers.quick, task_helpers.lead
pytestmark = pytest.mark.asyncio(loop_scope="session")


async def _ends(lead: Agent, task_id: str) -> float:
    return parse_time((await show(lead, task_id))["lease_until"], "lease_until")


async def _silent(lead: Agent, name: str) -> bool:
    agents = (await lead.call("list_agents", alive_only=False))["agents"]
    return not next(agent["alive"] for agent in agents if agent["agent_id"] == name)


async def test_any_call_keeps_an_agent_alive(quick: Server, namespace: str, lead: Agent) -> None:
    async with joined(quick, namespace, "ada", heartbeat_seconds=0.5) as ada:
        service = await quick.runtime.service()
        calls: list[tuple[str, dict[str, Any]]] = [
            ("list_agents", {}),
            ("retrieve_memory", {"memory_id": task_helpers.UNKNOWN}),
            ("batch_operations", {"operations": [{"op": "list_tasks"}]}),
        ]
        for number in range(12):
            tool, arguments = calls[number % len(calls)]
            await ada.client.call_tool(tool, arguments)
            await asyncio.sleep(0.1)
            await sweep_team(service, namespace)
            assert not await _silent(lead, "ada")
        await ada.call("wait_for_events", timeout_seconds=1.2)
        assert not await _silent(lead, "ada")
        await wait_until(lambda: _silent(lead, "ada"))


async def test_agent_that_sends_no_heartbeat_keeps_its_task(quick: Server, namespace: str, lead: Agent) -> None:
    """An hour with the defaults, 1,500 times faster: leases of 30 minutes, 20 minutes of work between calls."""
    minute = 0.04
    task_id = await submit(lead, lease_seconds=30 * minute)
    async with joined(quick, namespace, "ada", heartbeat_seconds=10 * minute) as ada:
        task = await lease(ada)
        for _ in range(3):
            await asyncio.sleep(20 * minute)
            await sweep_team(await quick.runtime.service(), namespace)
            await ada.call("list_tasks")
        assert (await complete(ada, task))["state"] == "completed"
    assert (await show(lead, task_id))["held_by"] == ["ada"]


async def test_task_of_a_killed_agent_goes_on_within_its_lease(quick: Server, namespace: str, lead: Agent) -> None:
    task_id = await submit(lead, lease_seconds=1.0)
    async with joined(quick, namespace, "ada", heartbeat_seconds=0.3) as ada:
        await lease(ada)
        await ada.call("list_tasks")
    ends = await _ends(lead, task_id)
    async with joined(quick, namespace, "ben") as ben:
        task = await lease(ben, wait_seconds=5)
    assert (task["task_id"], task["attempt"]) == (task_id, 1)
    assert ends <= time.time() < ends + 5


async def test_second_window_renews_nothing_and_learns_who_holds_the_task(
    quick: Server, namespace: str, lead: Agent
) -> None:
    task_id = await submit(lead, lease_seconds=3)
    async with joined(quick, namespace, "ada", mode="legacy") as one, quick.agent("ada", namespace, "legacy") as two:
        task = await lease(one)
        first = await _ends(lead, task_id)
        await asyncio.sleep(1.0)
        await two.call("list_tasks")
        await asyncio.sleep(0.2)
        assert await _ends(lead, task_id) == first
        answer = await two.call("get_pending_tasks")
        assert (answer["tasks"], answer["elsewhere"][0]["task_id"]) == ([], task_id)
        text = str((await two.raw("get_pending_tasks")).content)
        assert "Another session of yours" in text
        await one.call("list_tasks")
        await wait_until(lambda: _later(lead, task_id, first))
        assert (await complete(one, task))["state"] == "completed"


async def _later(lead: Agent, task_id: str, than: float) -> bool:
    return await _ends(lead, task_id) > than + 0.2


async def test_dashboard_keeps_nothing_alive(quick: Server, namespace: str, lead: Agent) -> None:
    async with joined(quick, namespace, "ada", heartbeat_seconds=0.5), httpx2.AsyncClient() as browser:
        page = {**PAGE, "sec-fetch-site": "same-origin"}

        async def silent() -> bool:
            url = f"{quick.url}/api/call/list_agents?agent=ada&namespace={namespace}"
            assert (await browser.post(url, json={}, headers=page)).status_code == 200
            return await _silent(lead, "ada")

        await wait_until(silent, 3.0)


async def test_rest_calls_keep_an_agent_alive(quick: Server, namespace: str, lead: Agent) -> None:
    async with joined(quick, namespace, "ada", heartbeat_seconds=0.5), httpx2.AsyncClient() as program:
        url = f"{quick.url}/api/call/list_agents?agent=ada&namespace={namespace}"
        for _ in range(8):
            assert (await program.post(url, json={}, headers=PAGE)).status_code == 200
            await asyncio.sleep(0.1)
            assert not await _silent(lead, "ada")


async def test_session_sees_what_it_holds_with_its_token(quick: Server, namespace: str, lead: Agent) -> None:
    await submit(lead, "Tar the hull.", payload={"buckets": 2})
    async with joined(quick, namespace, "ada") as ada:
        task = await lease(ada)
        await ada.call("update_agent_heartbeat", metrics={"done": "half of the hull"})
        answer = await ada.call("get_pending_tasks", wait_seconds=60)
        (held,) = answer["held"]
        assert (held["lease_token"], held["progress"]) == (task["lease_token"], {"done": "half of the hull"})
        text = str((await ada.raw("get_pending_tasks")).content)
        assert all(part in text for part in (task["lease_token"], "Tar the hull."))
        assert "No task" not in text


@pytest.mark.parametrize("tool", ["get_pending_tasks", "register_agent"])
@pytest.mark.parametrize("end", ["deleted", "silent"])
async def test_new_session_gets_its_work_back(quick: Server, namespace: str, lead: Agent, tool: str, end: str) -> None:
    task_id = await submit(lead)
    seconds = 60 if end == "deleted" else 0.3
    async with AsyncExitStack() as open_until_the_end:
        async with AsyncExitStack() as first:
            one = await first.enter_async_context(
                joined(quick, namespace, "ada", mode="legacy", heartbeat_seconds=seconds)
            )
            old = await lease(one)
            await one.call("update_agent_heartbeat", metrics={"done": "half"})
            if end == "silent":
                await open_until_the_end.enter_async_context(first.pop_all())
                await wait_until(lambda: _silent(lead, "ada"))
        two = await open_until_the_end.enter_async_context(quick.agent("ada", namespace, "legacy"))
        answer = await two.call(tool)
        (task,) = (answer if tool == "get_pending_tasks" else answer["work"])["tasks"]
        assert (task["task_id"], task["resumed"], task["attempt"], task["progress"]) == (
            task_id,
            True,
            1,
            {"done": "half"},
        )
        assert task["lease_token"] != old["lease_token"]
        assert await code(two, "complete_task", task_id=task_id, lease_token=old["lease_token"]) == "lease_lost"
        assert (await complete(two, task))["state"] == "completed"


async def test_heartbeat_with_a_token_moves_the_lease_to_its_session(
    quick: Server, namespace: str, lead: Agent
) -> None:
    task_id = await submit(lead, lease_seconds=60)
    async with joined(quick, namespace, "ada", mode="legacy") as one:
        task = await lease(one)
    async with quick.agent("ada", namespace, "legacy") as two:
        await two.call("update_agent_heartbeat", lease_tokens=[task["lease_token"]])
        assert [held["lease_token"] for held in (await two.call("get_pending_tasks"))["held"]] == [task["lease_token"]]
        assert await state(lead, task_id) == "leased"
        assert await claim(two) == []


async def test_agent_sees_the_tokens_of_all_that_it_holds(quick: Server, namespace: str, lead: Agent) -> None:
    for number in range(20):
        await submit(lead, f"Task number {number}.")
    async with joined(quick, namespace, "ada", max_tasks=60) as ada:
        taken = (await ada.call("get_pending_tasks", limit=20, with_memories=0))["tasks"]
        held = await ada.call("get_pending_tasks", limit=20, with_memories=0)
        assert {one["lease_token"] for one in held["held"]} == {one["lease_token"] for one in taken}
        assert (len(taken), held["partial"]) == (20, False)


async def test_restarted_stdio_server_gets_its_work_back(stack: Stack, namespace: str, lead: Agent) -> None:
    await submit(lead)
    caller, tasks = Caller(namespace, "ada"), list[ClaimedTask]()
    for _ in range(2):
        async with Service(Settings.load(redis_url=stack.redis.url)).running() as service:
            request = RequestContext(caller, session=service.presence.process_session)
            with service.presence.call(AgentSession(namespace, "ada", request.session)):
                answer = await register_agent(service, request, RegisterArguments())
                work = answer.work or await get_pending_tasks(service, request, PendingArguments(with_memories=0))
            tasks += work.tasks
    assert [task.resumed for task in tasks] == [False, True]
    assert tasks[0].lease_token != tasks[1].lease_token


END: dict[str, Callable[[Pipe], None]] = {
    "stdin closes": Pipe.close,
    "SIGTERM": lambda pipe: pipe.process.send_signal(signal.SIGTERM),
    "SIGINT": lambda pipe: pipe.process.send_signal(signal.SIGINT),
}


@pytest.mark.parametrize("waits", [False, True], ids=["idle", "waiting"])
@pytest.mark.parametrize("end", END)
async def test_session_ends_with_its_stdio_server(
    stack: Stack, quick: Server, namespace: str, lead: Agent, end: str, waits: bool
) -> None:
    task_id = await submit(lead)
    async with stdio_pipe(stack.redis.url, "ada", "--namespace", namespace) as server:
        await server.call("register_agent")
        (old,) = (await server.call("get_pending_tasks", wait_seconds=5, with_memories=0))["tasks"]
        if waits:
            await server.begin("wait_for_events", timeout_seconds=60)
            await asyncio.sleep(0.3)
        END[end](server)
        async with asyncio.timeout(20):
            await server.process.wait()
    async with quick.agent("ada", namespace, "legacy") as ada:
        (task,) = await claim(ada)
    assert (task["task_id"], task["resumed"], task["attempt"]) == (task_id, True, 1)
    assert task["lease_token"] != old["lease_token"]
