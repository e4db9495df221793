"""Answers `/livez` and `/readyz` before anything else, because probes must cost nothing and never be refused."""

from __future__ import annotations

import asyncio
import time

from mcp.server.transport_security import TransportSecurityMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from memory_core.errors import MemoryServiceError
from memory_server.engine.shares import Shares
from memory_server.http.binding import transport_security
from memory_server.mcp import lazy
from memory_server.runtime import Runtime

_READY_SECONDS = 2.0
_FRESH_SECONDS = 1.0
_NEWCOMER = None
"""An address without open requests."""


class Probes:
    """Answers that the process lives, and whether it is ready. One look at Redis serves all probes of a second."""

    def __init__(self, app: ASGIApp, requests: Shares, runtime: Runtime) -> None:
        self.app = app
        self._requests, self._runtime = requests, runtime
        self._hosts = TransportSecurityMiddleware(transport_security(runtime.settings))
        self._looking: asyncio.Task[str | None] | None = None
        self._looked_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else ""
        if path == "/livez":
            await PlainTextResponse("ok\n")(scope, receive, send)
        elif path == "/readyz":
            response = await self._hosts.validate_request(Request(scope)) or await self._ready()
            await response(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _ready(self) -> Response:
        refuses = self._runtime.gate.admission.refuses() or not self._requests.has_room(_NEWCOMER)
        reason = "calls are refused: the server is overloaded" if refuses else await self._reason()
        return JSONResponse({"ready": reason is None, "reason": reason}, status_code=200 if reason is None else 503)

    async def _reason(self) -> str | None:
        task, now = self._looking, time.monotonic()
        if task is None or (task.done() and now - self._looked_at > _FRESH_SECONDS):
            self._looked_at = now
            task = self._looking = asyncio.create_task(unready_reason(self._runtime))
        return await asyncio.shield(task)


async def unready_reason(runtime: Runtime) -> str | None:
    """Say why calls cannot be served yet; None if they can."""
    try:
        async with asyncio.timeout(_READY_SECONDS):
            return await lazy.memory_stats.is_ready(await runtime.service())
    except MemoryServiceError as error:
        return error.message
    except TimeoutError:
        return "Redis is not ready"
