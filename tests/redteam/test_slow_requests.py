"""Endless headers, half-sent bodies and slow clients cost an attacker's own connections only."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import httpx2
import pytest
import pytest_asyncio
from support.raw_http import ATTACKER, Connection, connection, head
from support.stack import Server, Stack, in_own_task, serving

from memory_server.http import bodies
from memory_server.http import connection as connections

pytestmark = pytest.mark.redteam
_MIB = 1 << 20
_LIMITS = {"body_bytes": _MIB, "request_bytes": 8 * _MIB}


@pytest_asyncio.fixture(loop_scope="session")
async def target(stack: Stack) -> AsyncGenerator[Server]:
    """A server with room for eight of its longest bodies."""
    async with in_own_task(serving(stack.redis.url, limits=_LIMITS)) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the server's deadlines."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(bodies, "GRACE_SECONDS", 1.0)


async def _store(server: Server, namespace: str) -> str:
    """Store a memory as an agent at another address than the attacker's."""
    async with server.agent("alice", namespace) as agent:
        return await agent.store("The boat needs paint.", wait=False)


async def _floods(opened: AsyncExitStack, server: Server, number: int, address: str, *parts: bytes) -> list[Connection]:
    flood = [await opened.enter_async_context(connection(server.url, address)) for _ in range(number)]
    for one in flood:
        await one.send(*parts)
    return flood


@pytest.mark.parametrize(
    "endless",
    [b"X-A: " + b"a" * 60_000, b"X-%d: a\r\n" * 6000, b"\r\n" * 30_000, b"\r\n\r\n"],
    ids=["one long header", "many headers", "blank lines", "none"],
)
@pytest.mark.usefixtures("impatient")
async def test_endless_headers_end_the_connection(target: Server, endless: bytes) -> None:
    async with connection(target.url) as attacker:
        begin = b"" if endless.startswith(b"\r\n") else b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        sent = 0
        while sent < 32 * _MIB and await attacker.send(begin if not sent else endless):
            sent += len(endless)
            if len(endless) < 10:
                break
        await attacker.answer(10.0)
        assert sent < 16 * _MIB


async def test_many_header_fields_in_one_write_are_refused(target: Server) -> None:
    async with connection(target.url) as attacker:
        await attacker.send(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n")
        assert (await attacker.answer(10.0)).startswith(b"HTTP/1.1 400")


async def test_endless_trailers_end_the_connection(target: Server) -> None:
    async with connection(target.url) as attacker:
        await attacker.send(head("/api/login", None, "X-Memory-Dashboard: 1"), b"2\r\n{}\r\n0\r\n")
        sent = 0
        while sent < 32 * _MIB and await attacker.send(b"X-A: " + b"a" * 60_000):
            sent += 60_000
        assert sent < 16 * _MIB


@pytest.mark.usefixtures("impatient")
async def test_headers_in_drops_end_the_connection(target: Server) -> None:
    async with connection(target.url) as attacker:
        await attacker.send(b"GET / HTTP/1.1\r\n")
        assert await attacker.answer(10.0) == b""


@pytest.mark.usefixtures("impatient")
async def test_connection_that_sends_nothing_is_closed(target: Server) -> None:
    async with connection(target.url) as attacker:
        assert await attacker.answer(10.0) == b""


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("path", ["/api/login", "/api/call/memory_stats", "/mcp", "/", "/livez", "/none-such"])
async def test_half_sent_body_has_a_deadline(target: Server, path: str) -> None:
    async with connection(target.url) as attacker:
        await attacker.send(head(path, 1000, "X-Memory-Dashboard: 1") + b"{")
        answer = await attacker.answer(10.0)
        assert answer.split()[1] in (b"408", b"200", b"404", b"405")


async def test_login_refuses_a_long_body_unread(target: Server) -> None:
    async with connection(target.url) as attacker:
        await attacker.send(head("/api/login", _MIB, "X-Memory-Dashboard: 1"))
        assert await attacker.status() == 413


@pytest.mark.parametrize("path", ["/api/login", "/mcp", "/api/call/store_memory"])
@pytest.mark.parametrize("length", [15_000, _MIB - 1, None])
async def test_half_sent_bodies_hold_nobody_up(target: Server, namespace: str, path: str, length: int | None) -> None:
    async with AsyncExitStack() as opened:
        await _floods(opened, target, 64, ATTACKER, head(path, length, "X-Memory-Dashboard: 1"))
        assert await _store(target, namespace)
        async with httpx2.AsyncClient() as http:
            assert (await http.get(f"{target.url}/readyz")).status_code == 200


@pytest.mark.parametrize("address", [ATTACKER, "127.0.0.1"], ids=["another address", "the agent's address"])
async def test_almost_complete_bodies_give_way_to_others(target: Server, namespace: str, address: str) -> None:
    body = b'{"a": "' + b"x" * (_MIB - 1000)
    async with AsyncExitStack() as opened:
        flood = await _floods(opened, target, 16, address, head("/mcp", _MIB) + body)
        assert await _store(target, namespace)
        await flood[0].answer(5.0)  # the body that has waited longest gives way, long before its deadline


async def test_compressed_body_is_not_unpacked(target: Server) -> None:
    async with connection(target.url) as attacker:
        await attacker.send(head("/mcp", 4, "Content-Encoding: gzip") + b"\x1f\x8b\x08\x00")
        assert 400 <= await attacker.status() < 500


async def test_client_that_completes_its_request_late_is_served(target: Server) -> None:
    async with connection(target.url) as client:
        request = head("/mcp", 2)
        await client.send(request[:40])
        await client.send(request[40:], b"{")
        await client.send(b"}")
        assert await client.status() == 400
