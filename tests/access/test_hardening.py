"""Limits that apply before any tool runs: bind address, hosts and origins, body size, TLS and stdio lines."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from support.auth_helpers import issued, post, tool_call
from support.certificates import certificate
from support.ports import free_port
from support.stack import Server, Stack, in_own_task, serving
from support.stdio import Pipe, stdio_pipe

from memory_core.errors import UnsafeStart
from memory_core.settings.settings import Settings
from memory_server.http.binding import check_bind

BODY_BYTES = 4096
NAMED = {"allowed_hosts": ["memory.example", "exact.example:8443"], "allowed_origins": ["https://app.example"]}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def token_server(stack: Stack) -> AsyncGenerator[Server]:
    """A server with tokens, allowed hosts and a small body limit."""
    options = NAMED | {"auth": {"mode": "tokens"}, "limits": {"body_bytes": BODY_BYTES}}
    async with in_own_task(serving(stack.redis.url, **options)) as server:
        yield server


# Bind address


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, "needs authentication"),
        ({"auth": {"mode": "tokens"}}, "needs allowed_hosts"),
        ({"auth": {"mode": "tokens"}, "allowed_hosts": ["a.example"]}, "without TLS"),
        ({"allowed_hosts": ["a.example"], "behind_proxy": True}, "needs authentication"),
        ({"auth": {"mode": "tokens"}, "behind_proxy": True}, "needs allowed_hosts"),
        ({"tls_cert": __file__}, "need each other"),
        ({"tls_cert": __file__, "tls_key": "/none-such"}, "cannot be used"),
        ({"tls_cert": __file__, "tls_key": __file__}, "cannot be used"),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "memory.example"])
def test_non_loopback_bind_is_refused_without_full_protection(
    host: str, settings: dict[str, Any], missing: str
) -> None:
    with pytest.raises(UnsafeStart, match=missing):
        check_bind(Settings.load(host=host, **settings))


@pytest.mark.parametrize("by_proxy", [True, False])
def test_non_loopback_bind_is_allowed_with_tokens_hosts_and_tls(by_proxy: bool, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    safe: dict[str, Any] = {"behind_proxy": True} if by_proxy else {"tls_cert": cert, "tls_key": key}
    check_bind(Settings.load(host="0.0.0.0", auth={"mode": "tokens"}, allowed_hosts=["a.example"], **safe))


def test_tls_key_that_every_user_can_read_is_refused(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    key.chmod(0o644)
    with pytest.raises(UnsafeStart, match="can read tls_key"):
        check_bind(Settings.load(tls_cert=cert, tls_key=key))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"behind_proxy": True}, "behind_proxy needs authentication"),
        ({"allowed_hosts": ["memory.example"]}, "allowed host 'memory.example' needs authentication"),
        ({"allowed_hosts": ["localhost", "10.0.0.7:8765"]}, "allowed host '10.0.0.7:8765' needs authentication"),
        ({"allowed_hosts": ["memory.example:*"]}, "needs authentication"),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_reach_beyond_loopback_is_refused_without_authentication(
    host: str, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UnsafeStart, match=problem):
        check_bind(Settings.load(host=host, **settings))
    check_bind(Settings.load(host=host, auth={"mode": "tokens"}, **settings))


def test_loopback_names_are_allowed_without_authentication() -> None:
    check_bind(Settings.load(allowed_hosts=["localhost", "127.0.0.1:8765", "[::1]:*"]))


# Hosts and origins


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "memory.example"}, 200),
        ({"Host": "memory.example:9"}, 200),
        ({"Host": "exact.example:8443"}, 200),
        ({"Host": "exact.example"}, 421),
        ({"Host": "evil.example"}, 421),
        ({"Host": "memory.example.evil.example"}, 421),
        ({"Origin": "https://app.example"}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://app.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
async def test_only_allowed_hosts_and_origins_are_served(
    token_server: Server, namespace: str, headers: dict[str, str], status: int
) -> None:
    assert (await post(token_server, await issued(token_server, "alice", namespace), **headers)).status_code == status


async def test_server_without_allowed_hosts_serves_only_loopback(server: Server) -> None:
    assert (await post(server, None)).status_code == 200
    assert (await post(server, None, Host="memory.example")).status_code == 421
    assert (await post(server, None, Origin="https://app.example")).status_code == 403


# Body size


async def test_oversized_body_is_refused_and_the_next_call_served(token_server: Server, namespace: str) -> None:
    token = await issued(token_server, "alice", namespace)
    large = tool_call("store_memory", content="x" * BODY_BYTES)
    assert (await post(token_server, token, large)).status_code == 413
    assert (await post(token_server, None, large)).status_code == 401
    assert (await post(token_server, token)).status_code == 200


async def test_body_without_content_length_is_also_capped(token_server: Server, namespace: str) -> None:
    async def pieces() -> AsyncGenerator[bytes]:
        for _ in range(BODY_BYTES // 100 + 2):
            yield b" " * 100

    token = await issued(token_server, "alice", namespace)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Accept": "application/json"}
    async with httpx2.AsyncClient(headers=headers) as client:
        assert (await client.post(f"{token_server.url}/mcp", content=pieces())).status_code == 413


# TLS


CLIENT_KEEP_ALIVE = 5
"""Seconds after which httpx closes an idle connection."""


@asynccontextmanager
async def _serve(stack: Stack, scheme: str = "http", **settings: str) -> AsyncGenerator[int]:
    """Run a server in its own process; yields its port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "memory_server", "serve", "--port", str(port)),
        env={**os.environ, "REDIS_URL": stack.redis.url, **settings},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while f"{scheme}://127.0.0.1:{port}/mcp".encode() not in await process.stdout.readline():
                assert not process.stdout.at_eof()
        yield port
    finally:
        process.terminate()
        await process.wait()


async def test_server_with_certificate_and_key_serves_https(stack: Stack, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    async with (
        _serve(stack, "https", MEMORY_TLS_CERT=str(cert), MEMORY_TLS_KEY=str(key)) as port,
        httpx2.AsyncClient(verify=ssl.create_default_context(cafile=str(cert))) as client,
    ):
        assert (await client.get(f"https://localhost:{port}/livez")).status_code == 200


@pytest.mark.long
async def test_server_keep_alive_outlasts_client_keep_alive(stack: Stack) -> None:
    async with _serve(stack) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for pause in (CLIENT_KEEP_ALIVE + 1, 0):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await reader.read(1024)
            await asyncio.sleep(pause)
        writer.close()


# stdio


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pipe(stack: Stack) -> AsyncGenerator[Pipe]:
    limit = {"MEMORY_LIMITS__BODY_BYTES": str(BODY_BYTES)}
    async with in_own_task(stdio_pipe(stack.redis.url, "alice", **limit)) as started:
        yield started


BAD_LINES: dict[str, tuple[bytes, int, Any]] = {
    "not JSON": (b"hello", -32700, None),
    "truncated JSON": (b'{"jsonrpc":"2.0","id":7,', -32700, None),
    "not UTF-8": (b'{"jsonrpc":"2.0","id":7,"method":"\xff\xfe"}', -32700, None),
    "lone surrogate": (b'{"jsonrpc":"2.0","id":7,"method":"\\ud800"}', -32700, None),
    "too deep": (b"[" * 2000, -32700, None),
    "NUL": (b"\x00", -32700, None),
    "not a message": (b'{"id":7,"jsonrpc":"1.0","method":"ping"}', -32600, 7),
    "a message without a method": (b'{"jsonrpc":"2.0","id":"seven"}', -32600, "seven"),
    "a number": (b"17", -32600, None),
    "a list": (b'[{"jsonrpc":"2.0","id":7,"method":"ping"}]', -32600, None),
    "an id that is a list": (b'{"jsonrpc":"2.0","id":[7],"method":"ping"}', -32600, None),
    "too long": (b"x" * (BODY_BYTES + 1), -32600, None),
    "far too long": (b'{"id":7,"x":"' + b"x" * 20_000_000, -32600, None),
}


async def test_invalid_stdio_line_is_answered_and_the_server_survives(pipe: Pipe) -> None:
    for number, (case, (line, code, about)) in enumerate(BAD_LINES.items(), start=100):
        answer = await pipe.ask(line)
        assert (answer["id"], answer["error"]["code"]) == (about, code), case
        assert len(answer["error"]["message"]) < 200, case
        ping = json.dumps({"jsonrpc": "2.0", "id": number, "method": "ping"}).encode()
        assert (await pipe.ask(ping))["id"] == number, case


async def test_line_at_the_limit_is_served_and_empty_lines_are_ignored(pipe: Pipe) -> None:
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    await pipe.send(b"\r\n  ")
    assert (await pipe.ask(ping.ljust(BODY_BYTES - 1)))["id"] == 1


async def test_50_mb_line_takes_little_memory(pipe: Pipe) -> None:
    await pipe.ask(json.dumps(tool_call("gpu_status")).encode())  # by this answer all imports are done
    await pipe.ask(b"x" * (BODY_BYTES + 1))
    before = peak_of(pipe.process.pid)
    await pipe.ask(b"x" * 50_000_000)
    assert peak_of(pipe.process.pid) - before < 30_000


def peak_of(pid: int) -> int:
    """Return the peak memory of a process in kB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
