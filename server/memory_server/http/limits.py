"""Refuses HTTP requests under load before they are parsed, which is many times cheaper than to refuse a parsed call.

Under sustained load a tool call is refused here with the tool's own error. Bodies are complete here: `bodies` reads
them. If there are too many open requests, any request is answered with 503.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from memory_core.settings.groups import LimitSettings
from memory_server.access.gate import Gate
from memory_server.engine.admission import ON_ITS_WAY
from memory_server.http.bodies import replay, unavailable
from memory_server.mcp.tools.tool_factory import refusal

_MAX_PARSED = 65_536
"""A body up to this size in bytes is parsed, to refuse its call in the terms of MCP; a longer one gets the 503."""
_DELAY_SHARE, _MAX_DELAY = 0.25, 1.0
"""A refusal is delayed by this share of its `retry_after`, up to this many seconds."""
_ALIVE = "/livez"
"""Always answered: the prober would kill a server that is only busy."""
_FIRST_MODERN = b"2026"


class RequestLimits:
    """Limits the open requests."""

    def __init__(self, app: ASGIApp, gate: Gate, limits: LimitSettings) -> None:
        self.app = app
        self._gate, self._limits = gate, limits
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _ALIVE:
            await self.app(scope, receive, send)
            return
        if self._requests >= self._limits.requests:
            await unavailable()(scope, receive, send)
            return
        self._requests += 1
        try:
            await self._admit(scope, receive, send)
        finally:
            self._requests -= 1

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        admission = self._gate.admission
        if scope["method"] != "POST" or scope["path"] != "/mcp":
            await self.app(scope, receive, send)
            return
        if admission.is_full():
            message = await receive()
            body: bytes = message.get("body", b"")
            if len(body) > _MAX_PARSED:
                await unavailable()(scope, receive, send)
                return
            call_id = _id_of_call(body)
            if call_id is not None:
                await (await self._refused(call_id, dict(scope["headers"])))(scope, receive, send)
                return
            receive = replay(message, receive)
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
