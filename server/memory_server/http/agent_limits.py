"""Divides open requests, bodies, sessions and slots between agents, after the token and before the SDK parses a call.

A refusal here costs many times less than that of a parsed call. A tool call is refused with the tool's own error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Hashable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, cast

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import INTERNAL_ERROR
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from memory_core.errors import Overloaded
from memory_core.settings.settings import Settings
from memory_server.access.gate import Gate
from memory_server.access.identity import holder_of
from memory_server.engine.admission import SLOT
from memory_server.engine.shares import Shares
from memory_server.http.bodies import replay, unavailable
from memory_server.http.limits import PLACE, Place
from memory_server.http.pace import KnownTokens
from memory_server.http.sessions import SessionServer
from memory_server.mcp.tools.tool_factory import refusal

_MAX_PARSED = 65_536
"""A body up to this size in bytes is parsed, to refuse its call in the terms of MCP; a longer one gets a 503."""
_DELAY_SHARE, _MAX_DELAY = 0.25, 1.0
"""A refusal is delayed by this share of its `retry_after`, up to this many seconds."""
_FIRST_MODERN = "2026"
_WITHOUT_SLOT = ("ping", "subscriptions/listen")
"""They do no work, or stay open."""
_VERSION = "mcp-protocol-version"


class AgentLimits:
    """Wraps the application of the SDK's session manager, and the one behind its check of the body's length."""

    def __init__(
        self,
        manager: StreamableHTTPSessionManager,
        sessions: SessionServer,
        gate: Gate,
        settings: Settings,
        known: KnownTokens,
    ) -> None:
        self._gate, self._settings, self._known = gate, settings, known
        self._bytes = Shares(settings.limits.request_bytes)
        self._read, self._serve = manager.asgi_app, sessions
        manager.asgi_app.app = self._admit
        cast(Any, manager).asgi_app = self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the request against its agent instead of its address."""
        self._known.add(scope)
        place: Place = scope[PLACE]
        holder = holder_of(Request(scope), self._settings)
        if place.pass_to(holder):
            await self._read(scope, receive, send)
        else:
            await unavailable("you have too many open requests")(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        receive = replay(message, receive)
        call = _Call.parse(message.get("body", b"")) if scope["method"] == "POST" else None
        if call is None:
            await self._serve(scope, receive, send)
            return
        holder, headers = holder_of(Request(scope), self._settings), Headers(scope=scope)
        async with AsyncExitStack() as held:
            try:
                self._take_bytes(held, holder, len(message["body"]))
                self._serve.check_room(holder, headers, call.method)
                slot = await held.enter_async_context(self._gate.admission.slot(holder, patient=not call.is_tool))
            except Overloaded as error:
                self._gate.count_refusal()
                await (await call.refused(error, headers))(scope, receive, send)
            else:
                await self._serve({**scope, SLOT: slot}, receive, send)

    def _take_bytes(self, held: AsyncExitStack, holder: Hashable, size: int) -> None:
        if not self._bytes.take(holder, size):
            raise Overloaded("your open requests are too long")  # at once: until then the body is kept
        held.callback(self._bytes.give_back, holder, size)


@dataclass(frozen=True, slots=True)
class _Call:
    """A request in a body. `id` is None if the body is too long to be parsed for a refusal.

    Only tool calls are refused when many calls wait: most clients try again only those.
    """

    id: int | str | None = None
    method: str = "tools/call"

    @property
    def is_tool(self) -> bool:
        return self.method == "tools/call"

    @classmethod
    def parse(cls, body: bytes) -> _Call | None:
        """Return None for what takes no slot: notifications, answers to the server, and what the SDK refuses."""
        if len(body) > _MAX_PARSED:
            return cls()
        try:
            message: Any = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(message, dict) or "method" not in message or not isinstance(message.get("id"), int | str):
            return None
        if message["method"] in _WITHOUT_SLOT:
            return None
        return cls(message["id"], str(message["method"]))

    async def refused(self, error: Overloaded, headers: Headers) -> Response:
        """Refuse the call after a delay, which slows down clients that retry immediately."""
        await asyncio.sleep(min((error.retry_after or 0.0) * _DELAY_SHARE, _MAX_DELAY))
        if self.id is None:
            return unavailable(error.message)
        if not self.is_tool:
            problem = {"code": INTERNAL_ERROR, "message": error.text(), "data": error.details()}
            return JSONResponse(
                {"jsonrpc": "2.0", "id": self.id, "error": problem}, status_code=503, headers={"Retry-After": "1"}
            )
        result = refusal(error).model_dump(mode="json", by_alias=True, exclude_none=True)
        if headers.get(_VERSION, "") < _FIRST_MODERN:
            result.pop("resultType", None)
        return JSONResponse({"jsonrpc": "2.0", "id": self.id, "result": result})
