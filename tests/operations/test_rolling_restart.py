"""Two servers on one Redis restart one after the other, under clients of every protocol version behind a balancer."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from support.auth_helpers import ACCEPT, INITIALIZE
from support.ports import free_port
from support.raw_http import META
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Stack, in_own_task

pytestmark = pytest.mark.long
CLIENTS, THINK_SECONDS, QUIET_SECONDS = 20, 4.0, 5.0
RAW, SDK = ["2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"], ["legacy", "auto"]
CALL: dict[str, Any] = {"name": "memory_stats", "arguments": {}}
Call = Callable[[], Awaitable[str]]
"""Makes one call. Returns an empty text, or how the call failed. Raises if the connection broke."""


@dataclass(slots=True)
class Balancer:
    """Gives each connection to the next server that accepts one, without regard to sessions."""

    ports: list[int]
    turns: itertools.count[int] = field(default_factory=itertools.count)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[str]:
        """Yields the URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = next(self.turns)
        for port in (self.ports[(first + turn) % len(self.ports)] for turn in range(len(self.ports))):
            with suppress(OSError):
                there, here = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(_pipe(reader, here), _pipe(there, writer))
                return
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while part := await reader.read(65_536):
            writer.write(part)
            await writer.drain()
    writer.close()


@dataclass(slots=True)
class Worker:
    """A client that calls until it is stopped, and counts how its calls ended."""

    call: Call
    counts: Counter[str] = field(default_factory=Counter[str])

    async def work(self, stopped: asyncio.Event) -> None:
        """Call again and again. A call whose connection broke was under way at a server that stopped."""
        while not stopped.is_set():
            try:
                problem = await self.call()
            except (TimeoutError, httpx2.TransportError):
                problem = "in flight"
            self.counts[problem or "answered"] += 1
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stopped.wait(), THINK_SECONDS)


@asynccontextmanager
async def raw_client(url: str, version: str) -> AsyncGenerator[Call]:
    """A client that opens a connection for each call, so that the servers take turns."""
    async with httpx2.AsyncClient(headers={**ACCEPT, "Connection": "close"}, timeout=30) as http:
        headers = {"mcp-protocol-version": version}
        if version >= "2026":
            headers |= {"mcp-method": "tools/call", "mcp-name": CALL["name"]}
        else:
            opening = {**INITIALIZE, "params": INITIALIZE["params"] | {"protocolVersion": version}}
            headers["mcp-session-id"] = (await http.post(url, json=opening)).headers["mcp-session-id"]
        params = CALL | ({"_meta": META} if version >= "2026" else {})
        body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}

        async def call() -> str:
            answer = await http.post(url, json=body, headers=headers)
            if answer.status_code != 200:
                return f"status {answer.status_code}"
            text = answer.text.partition("data: ")[2] if "data: " in answer.text else answer.text
            message = json.loads(text)
            return "" if not message.get("result", {"isError": True}).get("isError") else text[:200]

        yield call


@asynccontextmanager
async def sdk_client(url: str, mode: str) -> AsyncGenerator[Call]:
    """The SDK's client, which keeps its connections."""
    async with Client(url, mode=mode) as client:

        async def call() -> str:
            try:
                result = await asyncio.wait_for(client.call_tool(CALL["name"], CALL["arguments"]), 30)
            except Exception as error:  # the SDK has its own errors for a broken connection
                return "in flight" if _is_broken(error) else f"{type(error).__name__}: {error}"
            return str(result.content)[:200] if result.is_error else ""

        yield call


def _is_broken(error: BaseException) -> bool:
    text = str(error).lower()
    words = ("connection closed", "disconnected", "stream ended without a response")
    return isinstance(error, httpx2.TransportError) or any(word in text for word in words)


@asynccontextmanager
async def server_process(url: str, port: int, settings: dict[str, str]) -> AsyncGenerator[None]:
    """Run a server until the block ends; yields when it answers."""
    command = [sys.executable, "-m", "memory_server", "serve", "--port", str(port)]
    environment = {**os.environ, "REDIS_URL": url, "MEMORY_MASTER_KEY": MASTER_KEY, **settings}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=DEVNULL, stderr=DEVNULL)
    try:
        await _until_ready(process, port)
        yield
    finally:
        process.terminate()
        await process.wait()


async def _until_ready(process: Process, port: int) -> None:
    async with httpx2.AsyncClient() as http, asyncio.timeout(60):
        while process.returncode is None:
            with suppress(httpx2.TransportError):
                if (await http.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.2)
    raise AssertionError("the server ended")


async def test_rolling_restart_loses_no_session(stack: Stack, namespace: str) -> None:
    url, ports = stack.redis.url_of(SERVER), [free_port(), free_port()]
    async with AsyncExitStack() as parts:
        servers = [AsyncExitStack(), AsyncExitStack()]
        for server, port in zip(servers, ports, strict=True):
            await parts.enter_async_context(server)
            await server.enter_async_context(server_process(url, port, {}))
        where = await parts.enter_async_context(Balancer(ports).running())
        workers = dict[str, list[Worker]]()
        for kind, make in [*((version, raw_client) for version in RAW), *((mode, sdk_client) for mode in SDK)]:
            calls = list[Call]()
            for number in range(CLIENTS):
                named = f"{where}?agent={kind}-{number}&namespace={namespace}"
                calls.append(await parts.enter_async_context(in_own_task(make(named, kind))))
            workers[f"{make.__name__} {kind}"] = [Worker(call) for call in calls]
        stopped = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for worker in itertools.chain(*workers.values()):
                tasks.create_task(worker.work(stopped))
            for server, port in zip(servers, ports, strict=True):
                await asyncio.sleep(QUIET_SECONDS)
                await server.aclose()
                await server.enter_async_context(server_process(url, port, {}))
            await asyncio.sleep(QUIET_SECONDS)
            stopped.set()
        counts = {kind: sum((worker.counts for worker in group), Counter[str]()) for kind, group in workers.items()}
        print("\n".join(f"{kind}: {dict(count)}" for kind, count in counts.items()))
        for kind, group in workers.items():
            assert set(counts[kind]) <= {"answered", "in flight"}, f"{kind}: {counts[kind]}"
            assert max(worker.counts["in flight"] for worker in group) <= len(servers), kind
            problems = [await worker.call() for worker in group]
            assert not any(problems), f"{kind}: a session is lost"
