"""Serves MCP over streamable HTTP, the dashboard, probes and metrics."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import socket
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from memory_core.errors import InvalidArgument, MemoryServiceError, UnsafeStart
from memory_core.settings.settings import Settings
from memory_core.store.connection import redis_url
from memory_server.access.sessions import Sessions
from memory_server.dashboard.routes import dashboard
from memory_server.dashboard.security import SecurityHeaders
from memory_server.engine.redis_backend import Backend
from memory_server.engine.shares import Shares
from memory_server.http.agent_limits import AgentLimits
from memory_server.http.binding import check_bind, transport_security
from memory_server.http.bodies import BodyLimits
from memory_server.http.connection import BoundedConnection, Connections
from memory_server.http.greeting import greeting, operators_greeting
from memory_server.http.limits import RequestLimits
from memory_server.http.metrics import metrics_route
from memory_server.http.open_responses import OpenResponses
from memory_server.http.pace import KnownTokens, Pace
from memory_server.http.probes import Probes, unready_reason
from memory_server.http.sessions import SessionServer
from memory_server.local.paths import locate, prepare
from memory_server.local.running import address_of, configured_url, keyring_from_settings
from memory_server.local.servers import announced
from memory_server.mcp import lazy
from memory_server.mcp.server import build_server
from memory_server.runtime import Runtime

log = logging.getLogger(__name__)
_KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients keep theirs (httpx 5 s). If both closed it at the same
moment, a client could send a call on a closing connection and would not know whether it ran.
"""


_RETRY_SECONDS = 1.0
HANDSHAKE_SECONDS = 5.0
"""How long a client may take for the TLS handshake. Until then its connection is not counted."""


def bind(settings: Settings) -> socket.socket:
    """Open the listening socket; raises InvalidArgument if the address is taken or not of this machine."""
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


def check_local_files(settings: Settings) -> None:
    """Refuse unreadable keys and an unusable data directory, before anything listens. Raises UnsafeStart."""
    keyring_from_settings(settings)
    if redis_url(settings) is None:
        prepare(settings.data_dir)


async def serve_http(settings: Settings) -> None:
    """Serve until the process is stopped.

    Raises:
        UnsafeStart: the address or the Redis is unsafe as configured. InvalidArgument: the address is taken.
    """
    check_bind(settings)
    await asyncio.to_thread(check_local_files, settings)
    listener = bind(settings)
    runtime = Runtime(settings)
    application = http_application(build_server(runtime), runtime)
    server = HttpServer(server_config(application, settings, loop="none", log_config=None), runtime)
    async with runtime.running():
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        scheme = "https" if settings.tls_cert else "http"
        url = f"{scheme}://{host}:{port}/mcp"
        helpers = [
            asyncio.create_task(work) for work in (_stop_if_unsafe(runtime, server), _greet(runtime, server, url, port))
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


def server_config(application: Starlette, settings: Settings, **options: Any) -> uvicorn.Config:
    """Make uvicorn's settings, with bounded connections."""
    return uvicorn.Config(
        application,
        http=cast(Any, partial(BoundedConnection, opened=Connections(settings))),
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        proxy_headers=settings.behind_proxy,
        **options,
    )


class HttpServer(uvicorn.Server):
    """Ends waiting calls before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. asyncio waits 60 s for a TLS handshake, and uvicorn has no setting for it."""
        loop: Any = asyncio.get_running_loop()
        if self.config.ssl is not None:
            loop.create_server = partial(loop.create_server, ssl_handshake_timeout=HANDSHAKE_SECONDS)
        try:
            await super().startup(sockets)
        finally:
            vars(loop).pop("create_server", None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._runtime.stop_waiting()
        await super().shutdown(sockets)


def http_application(server: MCPServer[Any], runtime: Runtime) -> Starlette:
    """Make the ASGI application: MCP at /mcp, /livez, /readyz and /metrics, the dashboard at /."""

    server.custom_route("/metrics", methods=["GET"])(metrics_route(runtime))
    settings = runtime.settings
    transport = transport_security(settings)
    application = server.streamable_http_app(
        transport_security=transport,
        max_request_body_size=settings.limits.body_bytes,
        max_sessions=settings.limits.sessions,
    )
    known = KnownTokens(settings.auth.mode == "off")
    runtime.gate.sessions = Sessions(runtime.backend)
    sessions = SessionServer(server.session_manager, runtime.gate, runtime.gate.sessions, settings)
    AgentLimits(server.session_manager, sessions, runtime.gate, settings, known)
    application.router.routes.extend(dashboard(server, runtime, transport))
    verify = None if settings.auth.mode == "off" else runtime.gate.verify
    application.add_middleware(OpenResponses, verify=verify, send_seconds=settings.limits.send_seconds)
    application.add_middleware(Refusals)
    application.add_middleware(SecurityHeaders)
    application.add_middleware(TrimmedHeaders)
    requests = Shares(settings.limits.requests)
    application.add_middleware(RequestLimits, requests=requests)
    application.add_middleware(BodyLimits, limits=settings.limits)
    application.add_middleware(Probes, requests=requests, runtime=runtime)
    application.add_middleware(Pace, known=known)
    return application


class TrimmedHeaders:
    """Strips white space around header values, which httptools does not (RFC 9110, 5.5)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "headers": [(name, value.strip(b" \t")) for name, value in scope["headers"]]}
        await self.app(scope, receive, send)


class Refusals:
    """Answers 503 if a token cannot be checked because Redis or the issuer's keys are unavailable."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except MemoryServiceError as error:
            body = {"error": error.code, "error_description": error.message}
            headers = {"Retry-After": str(math.ceil(error.retry_after or 1.0))}
            await JSONResponse(body, status_code=503, headers=headers)(scope, receive, send)


async def _greet(runtime: Runtime, server: uvicorn.Server, url: str, port: int) -> None:
    """Announce the server on its data directory until cancelled, and print how clients connect.

    Nothing is printed before Redis was found safe: the server might stop at once. Commands find it earlier, because
    a Redis with many memories loads for minutes.
    """
    while not server.started:
        await asyncio.sleep(0.05)
    try:
        with ExitStack() as announcement:
            is_certain = not runtime.settings.uses_config_default_redis
            if is_certain:
                announcement.enter_context(_announced(runtime.settings, port))
            await _until_connected(runtime)
            if not is_certain:
                announcement.enter_context(_announced(runtime.settings, port, (await runtime.service()).backend))
            await _print_greeting(runtime, url)
            await asyncio.Event().wait()
    except UnsafeStart:
        server.should_exit = True
        raise


async def _until_connected(runtime: Runtime) -> None:
    """Wait for Redis. Raises UnsafeStart if it may not be used."""
    backend = (await runtime.service()).backend
    while True:
        try:
            await backend.client()
            return
        except UnsafeStart:
            raise
        except MemoryServiceError as error:
            log.info("not ready yet: %s", error.message)
            await asyncio.sleep(_RETRY_SECONDS)


@contextmanager
def _announced(settings: Settings, port: int, backend: Backend | None = None) -> Generator[None]:
    """Write where this server listens into the data directory. Only a server with the embedded Redis needs that.

    A connected `backend` says which of two Redis this server uses.
    """
    redis = redis_url(settings) if backend is None else None if backend.is_embedded else backend.url
    with ExitStack() as stack:
        try:
            if redis is None:
                prepare(settings.data_dir)
            name = address_of(redis) if redis else ""
            stack.enter_context(announced(locate(settings.data_dir), configured_url(settings, port), name))
        except UnsafeStart as error:
            if redis is None:
                raise
            log.info("commands on this machine will not find this server: %s", error.message)
        yield


async def _print_greeting(runtime: Runtime, url: str) -> None:
    print(greeting(url, with_tokens=runtime.settings.auth.mode != "off"), flush=True)
    last_reason = None
    while reason := await unready_reason(runtime):
        if reason != last_reason:
            log.info("not ready yet: %s", reason)
        last_reason = reason
        await asyncio.sleep(0.25)
    gc.collect()
    gc.freeze()  # what stays until the end is not looked at again: a collection took 100 ms
    print("Ready: memories can be stored and searched.", flush=True)
    service = await runtime.service()
    key = None
    if sys.stdout.isatty():  # a log may be read by others
        key = await lazy.operator_login.admit_once(service.backend, runtime.settings.namespace)
    print(operators_greeting(url.removesuffix("mcp"), key), flush=True)


async def _stop_if_unsafe(runtime: Runtime, server: uvicorn.Server) -> None:
    """Stop the process if Redis turns out to be unsafe."""
    service = await runtime.service()
    error: UnsafeStart = await asyncio.shield(service.backend.fatal)
    server.should_exit = True
    raise error
