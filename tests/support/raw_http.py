"""Sends raw bytes to a server as an attacker does, and measures what they cost the server's event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

ATTACKER = "127.0.0.2"
"""Another address than that of the agents."""
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
"""What each request of the sessionless protocol version has among its parameters."""
_PATIENCE = 30.0


@dataclass(slots=True)
class Connection:
    """A connection of an attacker."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *parts: bytes) -> bool:
        """Send parts until the server closes the connection. Returns whether it is still open."""
        try:
            for part in parts:
                self.writer.write(part)
                await self.writer.drain()
        except ConnectionError:
            return False
        return not self.reader.at_eof()

    async def answer(self, seconds: float = _PATIENCE) -> bytes:
        """Read until the server closes the connection. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def status(self, seconds: float = _PATIENCE) -> int:
        """Read the status of the next answer. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            return int((await self.reader.readline()).split()[1])


@asynccontextmanager
async def connection(url: str, address: str = ATTACKER) -> AsyncGenerator[Connection]:
    """Connect from an address."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, local_addr=(address, 0))
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


def head(path: str, length: int | None = None, *lines: str) -> bytes:
    """Make the request line and headers of a POST; a body without a length is chunked."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    common = ("Host: 127.0.0.1:1", "Content-Type: application/json", "Accept: application/json, text/event-stream")
    return "\r\n".join((f"POST {path} HTTP/1.1", *common, size, *lines, "", "")).encode()


def call(where: str, tool: str, arguments: bytes) -> bytes:
    """Make a whole request that calls a tool without a session; `where` is the query of the URL."""
    params = b'{"name":"%s","_meta":%s,"arguments":%s}' % (tool.encode(), json.dumps(META).encode(), arguments)
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":%s}' % params
    modern = ("Mcp-Protocol-Version: 2026-07-28", "Mcp-Method: tools/call", f"Mcp-Name: {tool}")
    return head(f"/mcp?{where}", len(body), *modern) + body


def dashboard_call(where: str, tool: str, arguments: bytes) -> bytes:
    """Make a whole request that calls a tool as the dashboard does."""
    return head(f"/api/call/{tool}?{where}", len(arguments), "X-Memory-Dashboard: 1") + arguments


@dataclass(slots=True)
class Gap:
    """The longest time that the event loop did nothing else, in seconds of CPU time."""

    cpu_seconds: float = 0.0


@asynccontextmanager
async def longest_gap() -> AsyncGenerator[Gap]:
    """Measure the longest gap of this event loop while inside. CPU time does not grow on a busy machine."""
    gap = Gap()

    async def tick() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            gap.cpu_seconds, last = max(gap.cpu_seconds, now - last), now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    try:
        yield gap
    finally:
        ticking.cancel()
