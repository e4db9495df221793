"""Turns HTTP requests away before anything is made of them: that is many times cheaper than to refuse a parsed call.

Under a load that lasts a call of a tool is answered here, as the tool itself would refuse it. Any request is answered
503 when those at hand would take too much memory with one more.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory_core.errors import Overloaded
from memory_core.settings.groups import LimitSettings
from memory_server.access.gate import Gate
from memory_server.engine.admission import ON_ITS_WAY
from memory_server.mcp.tools.toolkit import refusal

_PAUSE = 1
_MOST_READ = 65_536
"""Bytes of a body that is read to be refused in the terms of MCP; calls with longer ones get the 503."""
_HELD, _MOST_HELD = 0.25, 1.0
"""The share of its pause, and the seconds at most, for which a refusal is held back."""
_ALIVE = "/livez"
"""Always answered: who asks would end a server that is only busy."""
_FIRST_MODERN = b"2026"


class Doors:
    """Counts the requests at hand and the bytes of their bodies; a body of untold length counts as the longest."""

    def __init__(self, app: ASGIApp, gate: Gate, limits: LimitSettings) -> None:
        self.app = app
        self._gate, self._limits = gate, limits
        self._requests = self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http" or scope["path"] == _ALIVE:
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        size = _length(headers, self._limits.body_bytes)
        if self._requests >= self._limits.requests or self._bytes + size > self._limits.request_bytes:
            await _unavailable(_PAUSE)(scope, receive, send)
            return
        self._requests, self._bytes = self._requests + 1, self._bytes + size
        try:
            await self._let_in(scope, receive, send, headers, size)
        finally:
            self._requests, self._bytes = self._requests - 1, self._bytes - size

    async def _let_in(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], size: int) -> None:
        admission = self._gate.admission
        if scope["method"] != "POST" or scope["path"] != "/mcp":
            await self.app(scope, receive, send)
            return
        if admission.is_full():
            if size > _MOST_READ:
                await _unavailable(_PAUSE)(scope, receive, send)
                return
            body = await _read(receive)
            call_id = _id_of_call(body)
            if call_id is not None:
                await (await self._refused(call_id, headers))(scope, receive, send)
                return
            receive = _again(body, receive)
        with admission.coming() as on_its_way:
            await self.app({**scope, ON_ITS_WAY: on_its_way}, receive, send)

    async def _refused(self, call_id: int | str, headers: dict[bytes, bytes]) -> Response:
        """Refuse a call of a tool, not at once: who comes back at once, whatever it is told, is slowed down so."""
        error = self._gate.turn_away()
        await asyncio.sleep(min((error.retry_after or 0.0) * _HELD, _MOST_HELD))
        result = refusal(error).model_dump(mode="json", by_alias=True, exclude_none=True)
        if headers.get(b"mcp-protocol-version", b"") < _FIRST_MODERN:
            result.pop("resultType", None)
        return JSONResponse({"jsonrpc": "2.0", "id": call_id, "result": result})


def _id_of_call(body: bytes) -> int | str | None:
    """Give the id of a call of a tool; None for everything else, which is let pass."""
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("method") != "tools/call":
        return None
    return said["id"] if isinstance(said.get("id"), int | str) else None


def _length(headers: dict[bytes, bytes], most: int) -> int:
    if b"transfer-encoding" in headers:
        return most
    told = headers.get(b"content-length", b"0")
    return min(int(told), most) if told.isdigit() else most


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Give a body once more that was read already."""
    first = True

    async def given() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return given


def _unavailable(pause: int) -> Response:
    said = {
        "error": Overloaded.code,
        "error_description": f"the server holds as many requests as it can; try again in {pause} s",
        "retry_after": pause,
    }
    return JSONResponse(said, status_code=503, headers={"Retry-After": str(pause), "Connection": "close"})
