"""Under overload some calls wait, some are refused with a retry time, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import httpx2
import pytest
from support.embedder_fixtures import wait_until
from support.raw_http import META
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Agent, Server, Stack, serving

from memory_core.errors import Overloaded
from memory_server.engine.admission import Admission

CALLERS = 40
ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
MODERN = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "store_memory"}


@asynccontextmanager
async def _limited(stack: Stack, **limits: float) -> AsyncGenerator[tuple[Server, httpx2.AsyncClient]]:
    """A separate server on the session's Redis, and a bare client."""
    async with AsyncExitStack() as opened:
        url = stack.redis.url_of(SERVER)
        server = await opened.enter_async_context(serving(url, limits=limits, master_key=MASTER_KEY))
        http = await opened.enter_async_context(httpx2.AsyncClient(timeout=30, headers=ACCEPT))
        yield server, http


async def _call(http: httpx2.AsyncClient, server: Server, namespace: str, tool: str, **arguments: Any) -> Any:
    """Call a tool by the sessionless protocol version; return the raw result."""
    params = {"name": tool, "arguments": arguments, "_meta": META}
    body = {"jsonrpc": "2.0", "id": "one", "method": "tools/call", "params": params}
    url = f"{server.url}/mcp?agent=alice&namespace={namespace}"
    response = await http.post(url, json=body, headers={**MODERN, "mcp-name": tool})
    assert response.status_code == 200, response.text
    assert response.json()["id"] == "one"
    return response.json()["result"]


async def test_overload_refuses_some_calls_and_answers_the_others_correctly(stack: Stack, namespace: str) -> None:
    async with _limited(stack, calls_at_once=2, calls_waiting=4) as (server, http):
        calls = [
            _call(http, server, namespace, "store_memory", content=f"Crate {number}.", wait=False)
            for number in range(CALLERS)
        ]
        answers = [result["structuredContent"] for result in await asyncio.gather(*calls)]
        refused = [one["error"] for one in answers if "error" in one]
        assert 0 < len(refused) < CALLERS
        assert {one["code"] for one in refused} == {"overloaded"}
        assert all(one["retry_after"] > 0 for one in refused)
        stored = await _call(http, server, namespace, "get_agent_memories", limit=100)
        expected = {one["memory_id"]: f"Crate {number}." for number, one in enumerate(answers) if "error" not in one}
        assert {one["memory_id"]: one["content"] for one in stored["structuredContent"]["memories"]} == expected


async def test_burst_of_many_times_the_slots_is_served(stack: Stack, namespace: str) -> None:
    async with _limited(stack) as (server, http):
        calls = [
            _call(http, server, namespace, "store_memory", content=f"Box {number}.", wait=False)
            for number in range(150)
        ]
        assert not [result for result in await asyncio.gather(*calls) if result["isError"]]


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_early_refusal_matches_the_tools_own_answer(stack: Stack, namespace: str, era: Any) -> None:
    async with AsyncExitStack() as opened:
        server, http = await opened.enter_async_context(_limited(stack, calls_at_once=1, calls_waiting=0))
        agent = await opened.enter_async_context(server.agent("alice", namespace, era))
        with _busy(server):
            result = await agent.raw("memory_stats")
            listing = asyncio.create_task(agent.client.list_tools())
            large = await http.post(f"{server.url}/mcp", content=b" " * 100_000)
        assert result.is_error
        error = (result.structured_content or {})["error"]
        assert error["code"] == "overloaded"
        assert error["retry_after"] > 0
        assert (large.status_code, large.headers["retry-after"]) == (503, "1")
        assert server.runtime.counters.turned_away == 2
        assert (await listing).tools, "other requests wait"
        assert (await agent.call("memory_stats"))["vector_backlog"] == 0


async def test_waiting_calls_free_their_slot(stack: Stack, namespace: str) -> None:
    async with AsyncExitStack() as opened:
        server, _ = await opened.enter_async_context(_limited(stack, calls_at_once=1, calls_waiting=0))
        alice, bob = [await opened.enter_async_context(server.agent(name, namespace)) for name in ("alice", "bob")]
        await alice.call("register_agent")
        claiming = asyncio.create_task(alice.call("get_pending_tasks", wait_seconds=20))
        await wait_until(lambda: _listen(server, namespace, 1))
        waiting = asyncio.create_task(_until_admitted(alice, "wait_for_events", timeout_seconds=20, kinds=["task"]))
        await wait_until(lambda: _listen(server, namespace, 2))
        submitted = await _until_admitted(bob, "distribute_task", description="Row the boat.", assign_to="alice")
        assert (await claiming)["tasks"][0]["task_id"] == submitted["task_id"]
        assert (await waiting)["events"]


async def test_requests_over_the_memory_limit_are_refused_unread(stack: Stack, namespace: str) -> None:
    async with _limited(stack, request_bytes=50_000) as (server, http):
        answer = await http.post(f"{server.url}/mcp?namespace={namespace}", content=b" " * 60_000)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"] == "overloaded"
        assert not (await _call(http, server, namespace, "memory_stats"))["isError"]
    async with _limited(stack, requests=1) as (server, http), server.agent("alice", namespace) as agent:
        waiting = asyncio.create_task(agent.call("wait_for_events", timeout_seconds=20))
        await wait_until(lambda: _listen(server, namespace, 1))
        assert (await http.get(f"{server.url}/metrics")).json()["error"] == "overloaded"
        assert "refused" in (await http.get(f"{server.url}/readyz")).json()["reason"]
        assert (await http.get(f"{server.url}/livez")).status_code == 200, "busy is not dead"
        waiting.cancel()
        await wait_until(lambda: _is_open(http, server))


async def test_lasting_load_shortens_the_queue_until_it_ends() -> None:
    admission = Admission(at_once=2, waiting=100, patience=0.0)
    leave = asyncio.Event()

    async def work() -> None:
        async with admission.slot():
            await leave.wait()

    calls = [asyncio.create_task(work()) for _ in range(10)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
    done = [call for call in calls if call.done()]
    assert len(done) == 7, "two run and one waits"
    assert all(isinstance(call.exception(), Overloaded) for call in done)
    leave.set()
    await asyncio.wait(calls)
    async with admission.slot():
        assert not admission.refuses()


async def test_burst_that_lasts_refuses_the_latest_calls() -> None:
    admission = Admission(at_once=2, waiting=100, patience=0.05)
    leave = asyncio.Event()

    async def work() -> None:
        async with admission.slot():
            await leave.wait()

    burst = [asyncio.create_task(work()) for _ in range(10)]

    async def another_is_refused() -> bool:
        try:
            async with asyncio.timeout(0.01):
                await work()
        except Overloaded:
            return True
        except TimeoutError:
            return False
        return False

    await wait_until(another_is_refused)
    await asyncio.wait(burst[3:])
    assert [call.done() for call in burst] == [False] * 3 + [True] * 7
    assert all(isinstance(call.exception(), Overloaded) for call in burst[3:])
    leave.set()
    await asyncio.gather(*burst[:3])


async def test_cancelled_calls_never_leak_a_slot() -> None:
    admission = Admission(at_once=1, waiting=10, patience=60.0)
    never = asyncio.Event()

    async def work() -> None:
        async with admission.slot() as slot:
            with slot.given_back():
                await never.wait()

    async def hold() -> None:
        async with admission.slot():
            await never.wait()

    async def wait() -> None:
        async with admission.slot() as slot, slot.waiting():
            await asyncio.sleep(0)

    for steps in range(8):
        calls = [asyncio.create_task(one()) for one in (work, hold, wait, work, hold, wait, hold)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        async with asyncio.timeout(1), admission.slot():
            pass


async def test_waits_of_one_agent_that_end_together_run_in_turn() -> None:
    admission = Admission(at_once=4, waiting=100, patience=60.0)
    event, running, most = asyncio.Event(), 0, 0

    async def wait() -> None:
        nonlocal running, most
        async with admission.slot("mallory") as slot:
            async with slot.waiting():
                await event.wait()
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1

    waits = [asyncio.create_task(wait()) for _ in range(30)]
    await asyncio.sleep(0.01)
    event.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*waits)
    assert most <= 3


@contextmanager
def _busy(server: Server) -> Generator[None]:
    """Keep a call running until the block ends."""
    admission = server.runtime.gate.admission
    admission.enter_again()
    try:
        yield
    finally:
        admission.leave()


async def _listen(server: Server, namespace: str, number: int) -> bool:
    return server.service.events.count(namespace) == number


async def _is_open(http: httpx2.AsyncClient, server: Server) -> bool:
    return (await http.get(f"{server.url}/readyz")).json()["ready"]


async def _until_admitted(agent: Agent, tool: str, **arguments: Any) -> dict[str, Any]:
    """Retry while the server is overloaded, as agents do."""
    while True:
        result = await agent.raw(tool, **arguments)
        answer = result.structured_content or {}
        if answer.get("error", {}).get("code") != "overloaded":
            return answer
        await asyncio.sleep(answer["error"]["retry_after"])
