"""A bare MCP client over HTTP, so that benchmarks measure the server and not a client library.

One keep-alive connection, one call at a time. Checks only the status of answers.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

_HEADERS = "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
PROTOCOL = "2025-06-18"


class Refused(Exception):
    """The server refused a call. `error` is the structured error."""

    def __init__(self, text: str, error: dict[str, Any]) -> None:
        super().__init__(text)
        self.error = error


class RawClient:
    """One agent's connection; use it as an async context manager."""

    def __init__(self, url: str, capabilities: dict[str, Any] | None = None) -> None:
        self._capabilities = capabilities or {}
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        self._session = ""
        self._last_id = 0

    async def __aenter__(self) -> RawClient:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        information = {"name": "raw", "version": "1"}
        opening = {"protocolVersion": PROTOCOL, "capabilities": self._capabilities, "clientInfo": information}
        await self._post("initialize", opening)
        await self._exchange(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool; return its structured answer.

        Raises:
            Refused: the tool refused.
        """
        result = await self._post("tools/call", {"name": tool, "arguments": arguments})
        if result.get("isError"):
            error = result.get("structuredContent", {}).get("error", {})
            raise Refused(f"{tool}: {result['content'][0]['text'][:200]}", error)
        return result.get("structuredContent", {})

    async def _post(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
        answer = json.loads(await self._exchange(json.dumps(request).encode()))
        if "result" not in answer:
            raise RuntimeError(f"{method}: {answer}")
        return answer["result"]

    async def _exchange(self, body: bytes) -> bytes:
        """Send one request; return the JSON of its answer, which may be an event stream."""
        if self._reader.at_eof():  # the server closes idle connections
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        head = f"POST {self._path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{_HEADERS}{self._session}"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status, headers = await self._head()
        answer = await self._body(headers)
        if status >= 300:
            raise RuntimeError(f"HTTP {status}: {answer[:200]!r}")
        if session := headers.get("mcp-session-id"):
            self._session = f"Mcp-Session-Id: {session}\r\nMcp-Protocol-Version: {PROTOCOL}\r\n"
        if headers.get("content-type", "").startswith("text/event-stream"):
            data = [line[5:] for line in answer.splitlines() if line.startswith(b"data:")]
            return next(line for line in reversed(data) if b'"id"' in line)
        return answer

    async def _head(self) -> tuple[int, dict[str, str]]:
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.split(":", 1) for line in lines[1:] if ":" in line)
        return int(lines[0].split()[1]), {name.strip().lower(): value.strip() for name, value in pairs}

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await self._reader.readexactly(int(headers.get("content-length", "0")))
        parts: list[bytes] = []
        while size := int((await self._reader.readline()).strip(), 16):
            parts.append(await self._reader.readexactly(size))
            await self._reader.readline()
        await self._reader.readline()
        return b"".join(parts)
