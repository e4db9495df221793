"""A stdio server process and an agent connected to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from mcp import Client as McpClient
from mcp.client.stdio import StdioServerParameters, stdio_client

from support.auth_helpers import INITIALIZE
from support.stack import Agent

SEED = {
    "redis": {"host": "localhost", "port": 6379, "db": 0, "password": None},
    "gpu": {"enable_acceleration": True, "preferred_device": "auto", "fallback_to_cpu": True},
    "vector_store": {
        "embedding_model": "all-MiniLM-L6-v2",
        "vector_dimension": 384,
        "index_type": "IVFFlat",
        "rebuild_threshold": 1000,
    },
}


@asynccontextmanager
async def stdio_agent(agent: str, *options: str, **environment: str) -> AsyncGenerator[Agent]:
    """Start a stdio server for an agent, as Claude Code does."""
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "memory_server", "serve", "--stdio", "--agent", agent, *options],
        env={**os.environ, **environment},
    )
    with open(os.devnull, "w") as quiet:  # noqa: ASYNC230
        async with McpClient(stdio_client(parameters, errlog=quiet)) as client:
            yield Agent(client)


_numbers = count(100)


@dataclass
class Pipe:
    """A stdio server, addressed in raw bytes."""

    process: asyncio.subprocess.Process

    async def send(self, line: bytes) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        await self.process.stdin.drain()

    async def receive(self) -> dict[str, Any]:
        """Return the next message."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return json.loads(await self.process.stdout.readline())

    async def ask(self, line: bytes) -> dict[str, Any]:
        """Send a line and return the answer."""
        await self.send(line)
        return await self.receive()

    async def begin(self, tool: str, /, **arguments: Any) -> None:
        """Call a tool without reading the answer."""
        call = {"name": tool, "arguments": arguments}
        await self.send(
            json.dumps({"jsonrpc": "2.0", "id": next(_numbers), "method": "tools/call", "params": call}).encode()
        )

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool and return what it answered."""
        await self.begin(tool, **arguments)
        return (await self.receive())["result"]["structuredContent"]

    def close(self) -> None:
        """Close the server's stdin."""
        assert self.process.stdin is not None
        self.process.stdin.close()


@asynccontextmanager
async def stdio_pipe(redis_url: str, agent: str, *options: str, **environment: str) -> AsyncGenerator[Pipe]:
    """A stdio server for an agent. It must end without an error, by itself or by a signal of the test."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "memory_server", "serve", "--stdio", "--agent", agent, *options),
        env={**os.environ, "REDIS_URL": redis_url, **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    pipe = Pipe(process)
    try:
        assert "result" in await pipe.ask(json.dumps(INITIALIZE).encode())
        await pipe.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        yield pipe
    finally:
        pipe.close()
        async with asyncio.timeout(20):
            assert await process.wait() in {0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL}
