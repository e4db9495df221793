"""Refuses HTTP requests under load before they are parsed, which is many times cheaper than to refuse a parsed call.

Under sustained load a tool call is refused here with the tool's own error. If the open requests would take too much
memory, any request is answered with 503.
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
from memory_server.mcp.tools.tool_factory import refusal

_PAUSE = 1
_MAX_PARSED = 65_536
"""A body up to this size in bytes is parsed, to refuse its call in the terms of MCP; a longer one gets the 503."""
_DELAY_SHARE, _MAX_DELAY = 0.25, 1.0
"""A refusal is delayed by this share of its `retry_after`, up to this many seconds."""
_ALIVE = "/livez"
"""Always answered: the prober would kill a server that is only busy."""
_FIRST_MODERN = b"2026"


class RequestLimits:
    """Limits the open requests and the bytes of their bodies; a body of unknown length counts as the longest."""

    def __init__(self, app: ASGIApp, gate: Gate, limits: LimitSettings) -> None:
        self.app = app
        self._gate, self._limits = gate, limits
        self._requests = self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _ALIVE:
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        size = _length(headers, self._limits.body_bytes)
        if self._requests >= self._limits.requests or self._bytes + size > self._limits.request_bytes:
            await _unavailable()(scope, receive, send)
            return
        self._requests, self._bytes = self._requests + 1, self._bytes + size
        try:
            await self._admit(scope, receive, send, headers, size)
        finally:
            self._requests, self._bytes = self._requests - 1, self._bytes - size

    async def _admit(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], size: int) -> None:
        admission = self._gate.admission
        if scope["method"] != "POST" or scope["path"] != "/mcp":
            await self.app(scope, receive, send)
            return
        if admission.is_full():
            if size > _MAX_PARSED:
                await _unavailable()(scope, receive, send)
                return
            body = await _read(receive)
            call_id = _id_of_call(body)
            if call_id is not None:
                await (await self._refused(call_id, headers))(scope, receive, send)
                return
            receive = _replay(body, receive)
        with admission.coming() as arriving:
            await self.app({**scope, ON_ITS_WAY: arriving}, receive, send)

    async def _refused(self, call_id: int | str, headers: dict[bytes, bytes]) -> Response:
        """Refuse a tool call after a delay, which slows down clients that retry immediately."""
        error = self._gate.turn_away()
        await asyncio.sleep(min((error.retry_after or 0.0) * _DELAY_SHARE, _MAX_DELAY))
        result = refusal(error).model_dump(mode="json", by_alias=True, exclude_none=True)
        if headers.get(b"mcp-protocol-version", b"") < _FIRST_MODERN:
            result.pop("resultType", None)
        return JSONResponse({"jsonrpc": "2.0", "id": call_id, "result": result})


def _id_of_call(body: bytes) -> int | str | None:
    """Return the id of a tool call; None for anything else, which passes."""
    try:
        message: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or message.get("method") != "tools/call":
        return None
    return message["id"] if isinstance(message.get("id"), int | str) else None


def _length(headers: dict[bytes, bytes], longest: int) -> int:
    declared = headers.get(b"content-length", b"0")
    if b"transfer-encoding" in headers or not declared.isdigit():
        return longest
    return min(int(declared), longest)


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that begins with a body that was read already."""
    replayed: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return replayed.pop() if replayed else await receive()

    return replay


def _unavailable() -> Response:
    description = f"the server has too many open requests; try again in {_PAUSE} s"
    content = {"error": Overloaded.code, "error_description": description, "retry_after": _PAUSE}
    return JSONResponse(content, status_code=503, headers={"Retry-After": str(_PAUSE), "Connection": "close"})
