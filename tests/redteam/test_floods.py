"""A client floods the server. Another agent's calls are all served meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import httpx2
import pytest
from support.auth_helpers import ACCEPT, INITIALIZE, issued, tool_call
from support.certificates import certificate
from support.raw_http import ATTACKER, call, connection, head
from support.stack import Server, Stack, serving

from memory_core.records.keys import Keys
from memory_server.http import app
from memory_server.http import connection as connections

pytestmark = pytest.mark.redteam
_MIB = 1 << 20
_ROUNDS = 5
_SECONDS = 20.0
"""Time for the victim's calls. Alone they take a fraction of a second."""
_ASKING = {
    **INITIALIZE,
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {"elicitation": {}},
        "clientInfo": {"name": "bare", "version": "1"},
    },
}
Flood = Callable[[str, str], Awaitable[None]]


@asynccontextmanager
async def flooding(number: int, send: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """Repeat a request on so many connections while inside."""

    async def repeat() -> None:
        while True:
            with suppress(OSError, httpx2.HTTPError):
                await send()

    floods = [asyncio.create_task(repeat()) for _ in range(number)]
    try:
        await asyncio.sleep(0.5)
        assert not [flood for flood in floods if flood.done()], "the flood goes on"
        yield
    finally:
        for flood in floods:
            flood.cancel()
        await asyncio.gather(*floods, return_exceptions=True)


async def check_served(server: Server, namespace: str) -> None:
    """Make a mix of calls as another agent; all must succeed."""
    async with asyncio.timeout(_SECONDS), server.agent("victim", namespace) as victim:
        await victim.call("register_agent")
        for number in range(_ROUNDS):
            await victim.store(f"The ferry to island {number} leaves at noon.", wait=False)
            assert await victim.search(f"ferry {number}", mode="keyword")
            await victim.call("wait_for_events", timeout_seconds=0)
            await victim.call("get_pending_tasks")


async def _exchange(url: str, request: bytes) -> None:
    async with connection(url) as attacker:
        await attacker.send(request)
        with suppress(IndexError):
            await attacker.status()


def _request(tool: str, **arguments: object) -> Flood:
    body = json.dumps(arguments, ensure_ascii=False).encode()
    return lambda url, namespace: _exchange(url, call(f"agent=mallory&namespace={namespace}", tool, body))


async def _half_sent_body(url: str, namespace: str) -> None:
    async with connection(url) as attacker:
        await attacker.send(head(f"/mcp?agent=mallory&namespace={namespace}", _MIB) + b'{"a": "')
        await attacker.answer()


async def _endless_headers(url: str, _: str) -> None:
    async with connection(url) as attacker:
        await attacker.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for number in count():
            if not await attacker.send(f"x-{number}: {'a' * 1000}\r\n".encode()):
                break
            await asyncio.sleep(0.01)


async def _question(url: str, namespace: str) -> None:
    where = f"{url}/mcp?agent=mallory&namespace={namespace}"
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=2) as client:
        session = (await client.post(where, json=_ASKING)).headers.get("mcp-session-id", "")
        await client.post(
            where, json=tool_call("clear_memory", agent_id="mallory"), headers={"Mcp-Session-Id": session}
        )


FLOODS: dict[str, tuple[int, Flood]] = {
    "unanswered questions": (16, _question),
    "half-sent bodies": (128, _half_sent_body),
    "endless headers": (32, _endless_headers),
    "labels": (4, _request("store_memory", content="x", tags=["a" + "\u0301\u0323" * 22_000])),
    "newlines": (16, _request("store_memory", content="a" + "\n" * (_MIB - 1), wait=False)),
    "big JSON": (4, _request("store_memory", content="x", metadata={"a": [1] * 1_000_000})),
    "probes": (64, lambda url, _: _exchange(url, b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_other_agents_are_served_during_a_flood(stack: Stack, namespace: str, name: str) -> None:
    number, flood = FLOODS[name]
    async with serving(stack.redis.url, limits={"calls_at_once": 8, "calls_waiting": 40}) as server:
        async with server.agent("mallory", namespace) as mallory:
            for text in ("one", "two"):
                await mallory.store(text, wait=False)
        async with flooding(number, lambda: flood(server.url, namespace)):
            await check_served(server, namespace)


@asynccontextmanager
async def _guarded(stack: Stack) -> AsyncGenerator[Server]:
    async with serving(stack.redis.url, auth={"mode": "tokens"}) as server:
        yield server


async def test_long_batch_lets_its_agents_other_calls_run(stack: Stack, namespace: str) -> None:
    stores = [{"op": "store_memory", "content": f"Number {number}."} for number in range(300)]
    async with serving(stack.redis.url) as server, AsyncExitStack() as opened:
        alice, victim = [await opened.enter_async_context(server.agent(n, namespace)) for n in ("alice", "victim")]
        await victim.call("register_agent")
        batch = asyncio.create_task(alice.call("batch_operations", operations=stores))
        await asyncio.sleep(0.3)
        for _ in range(2):
            await victim.call("update_agent_heartbeat")
            await alice.call("memory_stats")
        assert not batch.done()
        assert (await batch)["succeeded"] == 300


async def test_bad_tokens_of_an_address_are_slowed_down(stack: Stack, namespace: str) -> None:
    async with _guarded(stack) as server, AsyncExitStack() as opened:
        transport = httpx2.AsyncHTTPTransport(local_address=ATTACKER)
        neighbour = await opened.enter_async_context(httpx2.AsyncClient(transport=transport, headers=ACCEPT))
        good = {"Authorization": f"Bearer {await issued(server, 'carol', namespace)}"}
        assert (await neighbour.post(f"{server.url}/mcp", json=INITIALIZE, headers=good)).status_code == 200
        bad = head("/mcp", 2, "Authorization: Bearer rm_bad_token") + b"{}"
        began = time.monotonic()
        async with flooding(50, lambda: _exchange(server.url, bad)):
            answer = await neighbour.post(f"{server.url}/mcp", json=INITIALIZE, headers=good)
            assert answer.status_code == 200, "an agent at the same address does not wait"
            await asyncio.sleep(2)
            checked = server.runtime.gate._counters.bad_tokens  # pyright: ignore[reportPrivateUsage]
        assert checked < 100 + 10 * (time.monotonic() - began)


async def test_connections_of_an_address_are_limited(
    stack: Stack, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "ADDRESS_CONNECTIONS", 20)
    async with serving(stack.redis.url) as server, AsyncExitStack() as opened:
        flood = [await opened.enter_async_context(connection(server.url)) for _ in range(40)]
        await asyncio.sleep(0.5)
        assert sum(not attacker.reader.at_eof() for attacker in flood) == 20
        await check_served(server, namespace)
        await opened.aclose()
        await asyncio.sleep(0.2)
        async with connection(server.url) as late:
            await late.send(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert await late.status() == 200, "an ended connection frees its place"


async def test_tls_handshake_that_never_ends_is_given_up(
    stack: Stack, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "HANDSHAKE_SECONDS", 0.5)
    cert, key = certificate(tmp_path)
    secured = serving(stack.redis.url, tls_cert=str(cert), tls_key=str(key))
    async with secured as server, connection(server.url) as attacker:
        await attacker.send(b"\x16\x03\x01")
        assert await attacker.answer(10.0) == b""


async def test_address_that_sends_much_is_read_slowly(
    stack: Stack, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BYTES_PER_SECOND", _MIB)
    monkeypatch.setattr(connections, "BYTES_AT_ONCE", _MIB)
    body = json.dumps({"content": "x" * (2 * _MIB)}).encode()
    async with serving(stack.redis.url) as server:
        request = call(f"agent=mallory&namespace={namespace}", "store_memory", body)
        began, answered = time.monotonic(), 0

        async def send() -> None:
            nonlocal answered
            await _exchange(server.url, request)
            answered += 1

        async with flooding(4, send):
            await check_served(server, namespace)
            await asyncio.sleep(2)
        assert answered <= 1 + (time.monotonic() - began) / 2


async def test_one_agent_does_not_take_the_last_kinds_of_task(server: Server, stack: Stack, namespace: str) -> None:
    kinds = Keys(namespace).kinds
    async with server.agent("carol", namespace) as carol:
        await carol.call("distribute_task", description="hers", min_context_window=5)
    ((_, spec),) = (await stack.client.hgetall(kinds)).items()
    others = [f"kind-{number}" for number in range(471)]
    await stack.client.hset(kinds, mapping=dict.fromkeys(others, spec))
    tasks = [{"op": "distribute_task", "description": "x", "min_context_window": 1000 + n} for n in range(40)]
    async with server.agent("mallory", namespace) as mallory:
        answer = await mallory.call("batch_operations", operations=tasks)
        assert answer["succeeded"] == 20, "half of those that were free"
    async with server.agent("victim", namespace) as victim:
        await victim.call("distribute_task", description="mine", min_context_window=7)
    await stack.client.hdel(kinds, *others)
