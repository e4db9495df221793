"""Answers `/metrics`, and checks its token."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from functools import cache

from mcp.server.transport_security import TransportSecurityMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from memory_core.crypto.secret_files import secret_of
from memory_core.errors import MemoryServiceError
from memory_core.settings.settings import Settings
from memory_server.http.binding import transport_security
from memory_server.mcp import lazy
from memory_server.runtime import Runtime

_WAIT_SECONDS = 1.0
"""How long to wait for a service that is starting; then its figures are left out."""
_CLOSED = "metrics need their token; set observe.metrics_token here and in Prometheus (authorization)\n"


def metrics_route(runtime: Runtime) -> Callable[[Request], Awaitable[Response]]:
    """Make the route of a runtime; raises UnsafeStart if the file of the token cannot be read."""
    settings, stocktaking = runtime.settings, cache(lambda: lazy.redis_stats.Stocktaking())
    token = secret_of(settings.observe.metrics_token, settings.observe.metrics_token_file, "observe.metrics_token")
    hosts = TransportSecurityMiddleware(transport_security(settings))

    async def metrics(request: Request) -> Response:
        refused = await hosts.validate_request(request)
        if refused is not None:
            return refused
        if not _may_see(request, settings, token):
            return PlainTextResponse(_CLOSED, status_code=401, headers={"WWW-Authenticate": "Bearer"})
        service = None
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                service = await runtime.service()
        except (MemoryServiceError, TimeoutError):
            pass
        stock = await stocktaking().stock(service) if service else lazy.redis_stats.Stock()
        body, content_type = lazy.prometheus.exposition(
            runtime.counters, service, stock, request.headers.get("accept", "")
        )
        return Response(body, headers={"Content-Type": content_type})

    return metrics


def _may_see(request: Request, settings: Settings, token: str | None) -> bool:
    """Whether a request has the token. None is needed on loopback without authentication."""
    if token is None:
        return settings.auth.mode == "off"
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())
