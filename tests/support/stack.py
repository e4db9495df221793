"""The real stack for tests: Redis, a sidecar with real weights, the HTTP server, and agents that connect to it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from mcp import Client as McpClient
from mcp.client.client import ConnectMode
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from memory_core.crypto.keyring import load_keyring, new_key
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store import sidecar as sidecars
from memory_core.store.connection import connect
from memory_server.http.app import HttpServer, http_application, server_config
from memory_server.mcp.server import build_server
from memory_server.runtime import Runtime
from memory_server.service import Service
from support.embedder_fixtures import RedisServer, wait_until
from support.redis_users import SERVER, SIDECAR

T = TypeVar("T")
_FIRST_START = 120.0
"""Seconds; the first sidecar on a new machine loads all its libraries and tries its engines."""


class Refused(Exception):
    """A tool answered with an error."""

    def __init__(self, text: str, error: dict[str, Any]) -> None:
        super().__init__(text)
        self.text = text
        self.code = error.get("code", "")
        self.error = error


class Agent:
    """One agent connected over MCP."""

    def __init__(self, client: McpClient) -> None:
        self.client = client

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool and return its structured answer.

        Raises:
            Refused: the tool answered with an error.
        """
        return answer_of(await self.raw(tool, **arguments))

    async def raw(self, tool: str, /, **arguments: Any) -> CallToolResult:
        """Call a tool and return the whole result."""
        result = await self.client.call_tool(tool, arguments)
        assert isinstance(result, CallToolResult)
        return result

    async def store(self, content: str, **arguments: Any) -> str:
        """Store a memory and return its id."""
        return (await self.call("store_memory", content=content, **arguments))["memory_id"]

    async def search(self, query: str, **arguments: Any) -> list[str]:
        """Search and return the contents found, best first."""
        answer = await self.call("semantic_search", query=query, **arguments)
        return [hit["memory"]["content"] for hit in answer["hits"]]


@asynccontextmanager
async def in_own_task(context: AbstractAsyncContextManager[T]) -> AsyncGenerator[T]:
    """Enter and leave a context in one task: cancel scopes need this, and fixtures do not do it."""
    entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    leaving = asyncio.Event()

    async def hold() -> None:
        async with context as value:
            entered.set_result(value)
            await leaving.wait()

    task = asyncio.create_task(hold())
    await asyncio.wait({task, entered}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield await entered
    finally:
        leaving.set()
        await task


def answer_of(result: CallToolResult) -> dict[str, Any]:
    """Return the structured answer of a result.

    Raises:
        Refused: the result is an error.
    """
    structured = result.structured_content or {}
    if result.is_error:
        raise Refused(text_of(result), structured.get("error", {}))
    return structured


def text_of(result: CallToolResult) -> str:
    """Return the text form of a result."""
    block = result.content[0]
    assert isinstance(block, TextContent)
    return block.text


@dataclass(slots=True)
class Server:
    """The HTTP server in this process."""

    url: str
    runtime: Runtime
    service: Service

    @asynccontextmanager
    async def agent(
        self, name: str, namespace: str, mode: ConnectMode = "auto", *, token: str | None = None, **options: Any
    ) -> AsyncGenerator[Agent]:
        """Connect an agent to a namespace, with a bearer token if there is one."""
        url = f"{self.url}/mcp?agent={name}&namespace={namespace}"
        async with AsyncExitStack() as opened:
            where: Any = url
            if token is not None:
                headers = {"Authorization": f"Bearer {token}"}
                http = await opened.enter_async_context(httpx2.AsyncClient(headers=headers))
                where = streamable_http_client(url, http_client=http)
            yield Agent(await opened.enter_async_context(McpClient(where, mode=mode, **options)))


@asynccontextmanager
async def serving(redis_url: str, **settings: Any) -> AsyncGenerator[Server]:
    """Run the HTTP server on a free port."""
    runtime = Runtime(Settings.load(redis_url=redis_url, **settings))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        application = http_application(build_server(runtime), runtime)
        server = HttpServer(server_config(application, runtime.settings), runtime)
        server.config.timeout_graceful_shutdown = 1
        async with runtime.running():
            task = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            try:
                service = await runtime.service()
                yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}", runtime, service)
            finally:
                server.should_exit = True
                await task


class SidecarProcess:
    """A real sidecar in its own process, which tests can kill."""

    def __init__(self, redis_url: str, *options: str, **environment: str) -> None:
        self._command = [sys.executable, "-m", "memory_embedder", *options]
        self._environment = {**os.environ, "REDIS_URL": redis_url, "PYTHONFAULTHANDLER": "1", **environment}
        self.process: subprocess.Popen[bytes] | None = None
        self._file = Path()
        self.log = b""
        """Its log, complete once it has ended."""

    def start(self) -> None:
        """Start it."""
        descriptor, name = tempfile.mkstemp(suffix=".log")
        self._file = Path(name)
        with os.fdopen(descriptor, "wb") as log:  # a pipe would fill up and stop it
            self.process = subprocess.Popen(self._command, env=self._environment, stderr=log)

    def check_running(self) -> None:
        """Check that it has not ended by itself.

        Raises:
            AssertionError: it has; the message is the end of its log.
        """
        assert self.process is not None
        assert self.process.poll() is None, self._file.read_text()[-4000:]

    def kill(self) -> None:
        """Kill it without warning."""
        self._end("kill")

    def stop(self) -> None:
        """Ask it to stop and wait."""
        self._end("terminate")

    def _end(self, how: str) -> None:
        assert self.process is not None
        getattr(self.process, how)()
        self.process.wait(timeout=20)
        self.log += self._file.read_bytes()
        self._file.unlink()


MASTER_KEY = new_key()
"""Of the session's stack: signs all its records and seals the texts sent to the sidecar."""


async def sidecar_is_ready(client: Client) -> bool:
    """Whether a sidecar reports that it is ready."""
    return any(status.state == "ready" for status in await sidecars.living(client))


@dataclass(slots=True)
class Stack:
    """Redis, a sidecar and the server; tests can kill each of them."""

    redis: RedisServer
    sidecar: SidecarProcess
    server: Server
    client: Client


@asynccontextmanager
async def whole_stack(folder: Path, *sidecar_options: str, **settings: Any) -> AsyncGenerator[Stack]:
    """Start Redis, a sidecar and the server, each under its user of redis/users.acl; wait until all serve.

    With a `master_key` the sidecar gets the transport key.
    """
    redis = RedisServer(folder)
    redis.start()
    transports = load_keyring(Settings.load(master_key=settings.get("master_key"))).transports
    environment = {"MEMORY_TRANSPORT_KEY": transports[0].encoded} if transports else {}
    sidecar = SidecarProcess(redis.url_of(SIDECAR), *sidecar_options, **environment)
    sidecar.start()
    async with AsyncExitStack() as parts:
        parts.callback(redis.kill)
        parts.callback(sidecar.stop)
        client = connect(redis.url)
        parts.push_async_callback(client.aclose)
        await wait_until(lambda: sidecar_is_ready(client), _FIRST_START)
        server = await parts.enter_async_context(serving(redis.url_of(SERVER), **settings))
        yield Stack(redis, sidecar, server, client)
