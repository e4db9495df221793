"""Serves many clients over streamable HTTP, with probes for whoever runs the server."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from memory_core.errors import InvalidArgument, MemoryServiceError, UnsafeStart
from memory_core.settings.settings import Settings
from memory_server.dashboard.routes import dashboard
from memory_server.dashboard.security import SecurityHeaders
from memory_server.http.binding import check_bind, transport_security
from memory_server.http.greeting import greeting, operators_greeting
from memory_server.http.limits import Doors
from memory_server.http.metrics import metrics_route
from memory_server.mcp.server import build_server
from memory_server.runtime import Runtime

log = logging.getLogger(__name__)
_READY_SECONDS = 2.0
_KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients keep theirs (httpx 5 s). If both gave it up at the same
moment, a call would be sent on a connection that is being closed, and nobody could tell whether it was done.
"""


def bind(settings: Settings) -> socket.socket:
    """Take the address to listen on.

    Raises:
        InvalidArgument: it is taken, or not of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InvalidArgument(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}", hint="choose another --port"
        ) from error
    return listener


async def serve_http(settings: Settings) -> None:
    """Serve until told to stop.

    Raises:
        UnsafeStart: the address or the Redis must not be used as configured.
        InvalidArgument: the address is taken.
    """
    check_bind(settings)
    listener = bind(settings)
    runtime = Runtime(settings)
    application = http_application(build_server(runtime), runtime)
    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        loop="none",
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        proxy_headers=settings.behind_proxy,
    )
    server = HttpServer(config, runtime)
    async with runtime.running():
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        scheme = "https" if settings.tls_cert else "http"
        url = f"{scheme}://{host}:{listener.getsockname()[1]}/mcp"
        helpers = [
            asyncio.create_task(_stop_if_unsafe(runtime, server)),
            asyncio.create_task(_greet(runtime, server, url)),
        ]
        try:
            await server.serve(sockets=[listener])
        finally:
            for helper in helpers:
                helper.cancel()
            results = await asyncio.gather(*helpers, return_exceptions=True)
    for result in results:
        if isinstance(result, MemoryServiceError):
            raise result


class HttpServer(uvicorn.Server):
    """Answers the calls that wait before it waits for its connections to end."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        self._runtime.stop_waiting()
        await super().shutdown(sockets)


def http_application(server: MCPServer[Any], runtime: Runtime) -> Starlette:
    """Make the ASGI application: MCP at /mcp, /livez, /readyz and /metrics, the dashboard at /."""

    @server.custom_route("/livez", methods=["GET"])
    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    @server.custom_route("/readyz", methods=["GET"])
    async def readyz(_: Request) -> Response:
        reason = await _unready_reason(runtime)
        return JSONResponse({"ready": reason is None, "reason": reason}, status_code=200 if reason is None else 503)

    server.custom_route("/metrics", methods=["GET"])(metrics_route(runtime))
    settings = runtime.settings
    named = transport_security(settings)
    application = server.streamable_http_app(transport_security=named, max_request_body_size=settings.limits.body_bytes)
    application.router.routes.extend(dashboard(server, runtime, named))
    application.add_middleware(Refusals)
    application.add_middleware(SecurityHeaders)
    application.add_middleware(TrimmedHeaders)
    application.add_middleware(Doors, gate=runtime.gate, limits=settings.limits)
    return application


class TrimmedHeaders:
    """Drops the white space after header values, which is no part of them (RFC 9110, 5.5); httptools leaves it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "http":
            scope = {**scope, "headers": [(name, value.strip(b" \t")) for name, value in scope["headers"]]}
        await self.app(scope, receive, send)


class Refusals:
    """Answers 503 where a token cannot be checked, because Redis or the issuer's keys cannot be reached."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        try:
            await self.app(scope, receive, send)
        except MemoryServiceError as error:
            body = {"error": error.code, "error_description": error.message}
            headers = {"Retry-After": str(math.ceil(error.retry_after or 1.0))}
            await JSONResponse(body, status_code=503, headers=headers)(scope, receive, send)


async def _unready_reason(runtime: Runtime) -> str | None:
    try:
        async with asyncio.timeout(_READY_SECONDS):
            service = await runtime.service()
            from memory_server.operations.stats.memory_stats import is_ready

            return await is_ready(service)
    except MemoryServiceError as error:
        return error.message
    except TimeoutError:
        return "Redis is not up yet"


async def _greet(runtime: Runtime, server: uvicorn.Server, url: str) -> None:
    """Tell the person at the terminal how clients connect, then when everything is up."""
    while not server.started:
        await asyncio.sleep(0.05)
    print(greeting(url), flush=True)
    page = url.removesuffix("mcp")
    said = None
    while reason := await _unready_reason(runtime):
        if reason != said:
            log.info("not ready yet: %s", reason)
        said = reason
        await asyncio.sleep(0.25)
    print("Ready: memories can be stored and searched.", flush=True)
    from memory_server.access.operator_login import admit_once

    service = await runtime.service()
    key = await admit_once(service.backend, runtime.settings.namespace)
    print(operators_greeting(page, key), flush=True)


async def _stop_if_unsafe(runtime: Runtime, server: uvicorn.Server) -> None:
    """End the process when Redis turns out to be one that must not be used."""
    service = await runtime.service()
    error: UnsafeStart = await asyncio.shield(service.backend.fatal)
    server.should_exit = True
    raise error
