"""The dashboard's pages and its API: sessions, tool calls, and a stream of events.

`POST /api/call/<tool>` runs a tool as /mcp does, with the same caller, gate, strict arguments, isolation and audit.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import CallToolResult
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from memory_core.errors import InvalidArgument, MemoryServiceError, NotFound, echo
from memory_core.records.authority import Effect
from memory_core.records.bounded_json import parse_json
from memory_server.dashboard.identity import Identifier
from memory_server.dashboard.live import live_events
from memory_server.dashboard.security import OwnPages
from memory_server.dashboard.tools import dashboard_tools
from memory_server.runtime import Runtime

STATIC = Path(__file__).parent / "static"
_STATUS = {
    "invalid_argument": 400, "unauthenticated": 401, "forbidden": 403, "not_found": 404, "conflict": 409,
    "lease_lost": 409, "confirmation_needed": 409, "rate_limited": 429, "quota_exceeded": 429, "not_supported": 501,
    "internal": 500,
}  # fmt: skip
_UNAVAILABLE = 503
_LONGEST_LOGIN = 20_000
Handler = Callable[[Request], Awaitable[Response]]


def dashboard(server: MCPServer[Any], runtime: Runtime, transport: TransportSecuritySettings) -> list[BaseRoute]:
    """Make the routes of the page, its files and its API. `transport` names the Host and Origin headers."""
    pages = _Pages(server, runtime, OwnPages(transport, runtime.settings))
    api = [
        Route("/session", pages.guarded(pages.session)),
        Route("/login", pages.guarded(pages.log_in), methods=["POST"]),
        Route("/logout", pages.guarded(pages.log_out), methods=["POST"]),
        Route("/call/{tool}", pages.guarded(pages.call), methods=["POST"]),
        Route("/events", pages.guarded(pages.events)),
    ]
    return [Route("/", pages.index), Mount("/api", routes=api), Mount("/static", _Files(directory=STATIC))]


class _Files(StaticFiles):
    """The dashboard's files. Browsers revalidate them, so an update takes effect immediately."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


class _Pages:
    def __init__(self, server: MCPServer[Any], runtime: Runtime, own_pages: OwnPages) -> None:
        self._server = server
        self._runtime = runtime
        self._own = dashboard_tools(runtime)
        self._identifier = Identifier(runtime, server)
        self._own_pages = own_pages

    def guarded(self, handler: Handler) -> Handler:
        """Have a handler refuse foreign pages, and return errors as JSON."""

        async def handle(request: Request) -> Response:
            try:
                await self._own_pages.check(request)
                return await handler(request)
            except MemoryServiceError as error:
                return _refusal(error)

        return handle

    async def index(self, _: Request) -> Response:
        """Return the page; its first call identifies the caller."""
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def session(self, request: Request) -> Response:
        """Report who the page acts as, or that a login is needed."""
        settings = self._runtime.settings
        answer: dict[str, Any] = {"auth": settings.auth.mode, "version": version("redis-memory-gpu")}
        try:
            caller = await self._identifier.caller(request)
        except MemoryServiceError as error:
            if error.code != "unauthenticated":
                raise
            return JSONResponse({**answer, "login": True})
        answer |= {"login": False, "agent": caller.agent, "namespace": caller.namespace}
        answer |= {
            "operator": caller.oversees,
            "may": sorted(self._identifier.effects(request)),
            "session": self._identifier.session_of(request) is not None,
            "may_choose": settings.auth.mode == "off",
        }
        return JSONResponse(answer)

    async def log_in(self, request: Request) -> Response:
        """Open a session by a bearer token, or by the key of a one-time URL."""
        body = await self._body(request, _LONGEST_LOGIN)
        token, key = body.get("token"), body.get("key")
        if isinstance(token, str):
            proof, op = await self._identifier.log_in(request, token.strip()), "dashboard_login"
        elif isinstance(key, str):
            proof, op = await self._identifier.open_for_operator(request, key), "dashboard_operator_login"
        else:
            raise InvalidArgument("a token or a key is missing", hint="send one of them")
        context = await self._identifier.identify(request)
        async with self._runtime.gate.audited(context, op) as login:
            login.call.succeeded()
        response = JSONResponse({"ok": True, "page_key": proof.page_key})
        self._identifier.set_cookie(request, response, proof.cookie)
        return response

    async def log_out(self, request: Request) -> Response:
        self._identifier.drop_session(request)
        response = JSONResponse({"ok": True})
        response.delete_cookie(self._identifier.cookie_name(request), path="/")
        return response

    async def call(self, request: Request) -> Response:
        name = request.path_params["tool"]
        arguments = await self._body(request, self._runtime.settings.limits.body_bytes)
        context = self._identifier.tool_context(await self._identifier.identify(request))
        try:
            own = self._own.get(name)
            result = await (own.run(arguments, context) if own else self._server.call_tool(name, arguments, context))
        except ToolError:
            raise NotFound(f"no tool {echo(name)}", hint="list them with tools/list at /mcp") from None
        if not isinstance(result, CallToolResult):
            raise InvalidArgument("this call asks for confirmation", hint="send confirm: true")
        content: dict[str, Any] = result.structured_content or {}
        code = content.get("error", {}).get("code", "") if result.is_error else ""
        return JSONResponse(content, status_code=_STATUS.get(code, _UNAVAILABLE) if result.is_error else 200)

    async def events(self, request: Request) -> Response:
        """Stream events until the page closes or the caller is no longer admitted."""
        context = await self._identifier.identify(request)
        gate = self._runtime.gate
        async with gate.admitted(context, "dashboard_events", [], [Effect.SEE_EVENTS]) as request_context:
            request_context.call.succeeded()
        service = await self._runtime.service()
        stream = live_events(service, request_context)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def _body(self, request: Request, max_bytes: int) -> dict[str, Any]:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise InvalidArgument(f"the request is longer than {max_bytes} bytes")
        try:
            arguments = parse_json(bytes(body))
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise InvalidArgument("the request is not a JSON object", hint="send the arguments as one")
        return arguments


def _refusal(error: MemoryServiceError) -> Response:
    status = _STATUS.get(error.code, _UNAVAILABLE)
    headers = {"Retry-After": str(math.ceil(error.retry_after))} if error.retry_after else None
    return JSONResponse({"error": error.details()}, status_code=status, headers=headers)
