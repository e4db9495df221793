"""One hostile agent, or one hostile address, floods the server. It slows itself; the others' calls are served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
from support.embedder_fixtures import wait_until
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Server, Stack, serving

from memory_core.records.keys import Keys
from memory_server.operations.sweeper import sweep
from memory_server.service import Service

pytestmark = pytest.mark.redteam
JSON = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
WAITING = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "wait_for_events"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}},
}


@asynccontextmanager
async def _small(stack: Stack, **limits: float) -> AsyncGenerator[tuple[Server, httpx2.AsyncClient]]:
    """A separate server with low limits, and a bare client."""
    async with AsyncExitStack() as opened:
        url = stack.redis.url_of(SERVER)
        server = await opened.enter_async_context(serving(url, limits=limits, master_key=MASTER_KEY))
        yield server, await opened.enter_async_context(httpx2.AsyncClient(timeout=30, headers=JSON))


def _mcp(server: Server, agent: str, namespace: str) -> str:
    return f"{server.url}/mcp?agent={agent}&namespace={namespace}"


async def test_session_flood_leaves_room_for_other_agents(stack: Stack, namespace: str) -> None:
    async with _small(stack, sessions=20) as (server, http):
        opened = [await http.post(_mcp(server, "mallory", namespace), json=INITIALIZE) for _ in range(25)]
        statuses = [answer.status_code for answer in opened]
        assert 503 in statuses, "the flooder is refused"
        assert statuses.count(200) <= 10
        async with server.agent("victim", namespace, "legacy") as victim:
            assert (await victim.call("memory_stats"))["vector_backlog"] == 0
        first = opened[0].headers["mcp-session-id"]
        ended = await http.delete(_mcp(server, "mallory", namespace), headers={"mcp-session-id": first})
        assert ended.status_code == 200
        again = await http.post(_mcp(server, "mallory", namespace), json=INITIALIZE)
        assert again.status_code == 200, "an ended session frees its place"


async def test_call_flood_of_one_agent_refuses_only_its_own_calls(stack: Stack, namespace: str) -> None:
    async with _small(stack, calls_at_once=4, calls_waiting=40) as (server, _), AsyncExitStack() as opened:
        mallory = await opened.enter_async_context(server.agent("mallory", namespace))
        victim = await opened.enter_async_context(server.agent("victim", namespace))
        flood = [asyncio.create_task(mallory.raw("memory_stats")) for _ in range(200)]
        await asyncio.sleep(0.05)
        results = [await victim.raw("memory_stats") for _ in range(5)]
        assert not [result for result in results if result.is_error]
        assert [done for done in await asyncio.gather(*flood) if done.is_error], "the flooder is refused"


async def test_long_bodies_of_one_agent_do_not_refuse_others(stack: Stack, namespace: str) -> None:
    body = json.dumps(_wait_call(20)).encode() + b" " * (1 << 20)
    async with _small(stack, request_bytes=8 * len(body)) as (server, http):
        url = _mcp(server, "mallory", namespace)
        flood = [asyncio.create_task(http.post(url, content=body, headers=WAITING)) for _ in range(12)]
        try:
            done, _ = await asyncio.wait(flood, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            assert done, "the flooder is refused"
            assert next(iter(done)).result().status_code == 503
            answer = await http.post(_mcp(server, "victim", namespace), json=INITIALIZE)
            assert answer.status_code == 200, answer.text
        finally:
            await _cancel(flood)


async def test_waits_of_one_agent_are_limited(stack: Stack, namespace: str) -> None:
    async with _small(stack) as (server, _), AsyncExitStack() as opened:
        mallory = await opened.enter_async_context(server.agent("mallory", namespace))
        victim = await opened.enter_async_context(server.agent("victim", namespace))
        waits = [asyncio.create_task(mallory.raw("wait_for_events", timeout_seconds=20)) for _ in range(300)]
        try:
            done, _ = await asyncio.wait(waits, timeout=15, return_when=asyncio.FIRST_COMPLETED)
            assert done, "a wait beyond the limit is refused"
            assert (await next(iter(done))).is_error
            assert server.service.events.count(namespace) <= 256
            assert not (await victim.raw("wait_for_events", timeout_seconds=1)).is_error
        finally:
            await _cancel(waits)


async def test_readyz_admits_that_calls_are_refused(stack: Stack, namespace: str) -> None:
    async with _small(stack, calls_at_once=1, calls_waiting=0) as (server, http):
        assert (await http.get(f"{server.url}/readyz")).json() == {"ready": True, "reason": None}
        async with server.runtime.gate.admission.slot():
            await wait_until(lambda: _is_unready(http, server))
        await wait_until(lambda: _is_ready(http, server))


async def test_readyz_checks_the_host_and_is_computed_once_a_second(
    stack: Stack, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _small(stack) as (server, http):
        asked: list[Any] = []
        client = server.service.backend.client

        async def counting() -> Any:
            asked.append(1)
            return await client()

        monkeypatch.setattr(server.service.backend, "client", counting)
        answers = await asyncio.gather(*(http.get(f"{server.url}/readyz") for _ in range(100)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(asked) < 20, "one look serves all"
        foreign = await http.get(f"{server.url}/readyz", headers={"Host": "evil.example"})
        assert foreign.status_code == 421


async def test_unasked_grants_of_one_agent_leave_room_for_others(server: Server, namespace: str) -> None:
    async with AsyncExitStack() as opened:
        mallory, carol, victim = [
            await opened.enter_async_context(server.agent(name, namespace)) for name in ("mallory", "carol", "victim")
        ]
        for agent in (mallory, carol, victim):
            await agent.call("register_agent")
        flood = [
            {"op": "share_context_with_agent", "target_agent": "victim", "context": f"c{number}"}
            for number in range(300)
        ]
        answer = await mallory.call("batch_operations", operations=flood)
        assert answer["failed"] >= 200, "the flooder is refused"
        shared = await carol.call("share_context_with_agent", target_agent="victim", context="plans")
        assert shared["grant_id"]


async def test_private_stores_push_out_no_events_of_others(
    server: Server, stack: Stack, service: Service, namespace: str
) -> None:
    async with AsyncExitStack() as opened:
        mallory, carol, victim = [
            await opened.enter_async_context(server.agent(name, namespace)) for name in ("mallory", "carol", "victim")
        ]
        for agent in (mallory, carol, victim):
            await agent.call("register_agent")
        cursor = (await victim.call("wait_for_events", timeout_seconds=0))["cursor"]
        granted = await carol.call("share_context_with_agent", target_agent="victim", context="plans")
        await mallory.store("Mine.", wait=False)
        await _repeat_last_event(stack, namespace, 13_000)
        await mallory.store("Mine too.", wait=False)
        await sweep(service)
        answer = await victim.call("wait_for_events", timeout_seconds=0, cursor=cursor)
        assert [event["id"] for event in answer["events"]] == [granted["grant_id"]]
        assert not answer["partial"], "what others do is no gap"
        assert await stack.client.xlen(Keys(namespace).events) < 11_000


async def _repeat_last_event(stack: Stack, namespace: str, times: int) -> None:
    """Write an event again as its Function does, without the memories."""
    ((_, fields),) = await stack.client.xrevrange(Keys(namespace).events, count=1)
    pipe = stack.client.pipeline(transaction=False)
    for _ in range(times):
        pipe.xadd(Keys(namespace).events, fields)
    await pipe.execute()


async def test_kinds_of_task_of_one_agent_are_limited(server: Server, stack: Stack, namespace: str) -> None:
    async with AsyncExitStack() as opened:
        mallory, victim = [await opened.enter_async_context(server.agent(n, namespace)) for n in ("mallory", "victim")]
        await victim.call("register_agent", context_window=8000, max_tasks=3)
        kinds = [
            {"op": "distribute_task", "description": "x", "min_context_window": 100_000 + number}
            for number in range(150)
        ]
        answer = await mallory.call("batch_operations", operations=kinds)
        assert answer["failed"] >= 80, "the flooder is refused"
        assert await stack.client.hlen(Keys(namespace).kinds) <= 64
        await mallory.call("distribute_task", description="x", min_context_window=100_000)
        for window in (4000, 5000):
            await victim.call("distribute_task", description="mine", min_context_window=window)
        claimed = await victim.call("get_pending_tasks", limit=3)
        assert len(claimed["tasks"]) == 2


def _wait_call(seconds: float) -> dict[str, Any]:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": "wait_for_events", "arguments": {"timeout_seconds": seconds}, "_meta": meta}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _is_unready(http: httpx2.AsyncClient, server: Server) -> bool:
    answer = await http.get(f"{server.url}/readyz")
    return answer.status_code == 503 and "refused" in answer.json()["reason"]


async def _is_ready(http: httpx2.AsyncClient, server: Server) -> bool:
    return (await http.get(f"{server.url}/readyz")).status_code == 200
