"""Protects the dashboard with security headers and with a check that requests come from its own pages."""

from __future__ import annotations

from urllib.parse import urlsplit

from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory_core.errors import Forbidden
from memory_core.settings.settings import Settings

PAGE_HEADER = "x-memory-dashboard"
"""A header of the dashboard's own requests; a page of another site cannot add it without a preflight request."""
_PATHS = ("/api/", "/static/")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class SecurityHeaders:
    """Adds the headers to all answers under the dashboard's paths."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] == "/" or scope["path"].startswith(_PATHS)):
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, with_headers)


class OwnPages:
    """Admits requests that name this server, as /mcp does, and POST requests only from the dashboard's own pages."""

    def __init__(self, transport: TransportSecuritySettings, settings: Settings) -> None:
        self._transport = TransportSecurityMiddleware(transport)
        self._origins = frozenset(settings.allowed_origins)

    async def check(self, request: Request) -> None:
        """Raise Forbidden if the Host or Origin is foreign, or the dashboard did not make the request."""
        is_post = request.method == "POST"
        if await self._transport.validate_request(request, is_post):
            raise Forbidden("the Host, Origin or Content-Type is not one of this server's")
        origin = request.headers.get("origin")
        foreign = origin not in (None, *self._origins) and urlsplit(origin or "").netloc != request.headers.get("host")
        cross = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        if foreign or cross or (is_post and request.headers.get(PAGE_HEADER) != "1"):
            raise Forbidden("the dashboard did not make this request", hint=f"send {PAGE_HEADER}: 1")
