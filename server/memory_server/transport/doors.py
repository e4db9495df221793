"""Turns HTTP requests away before they are read, when those at hand would take too much memory with one more."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from memory_core.errors import Overloaded
from memory_core.limit_settings import LimitSettings

_PAUSE = 1


class Doors:
    """Counts the requests at hand and the bytes of their bodies; a body of untold length counts as the longest."""

    def __init__(self, app: ASGIApp, limits: LimitSettings) -> None:
        self.app = app
        self._limits = limits
        self._requests = self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size = _length(scope, self._limits.body_bytes)
        if self._requests >= self._limits.requests or self._bytes + size > self._limits.request_bytes:
            await _refuse(scope, receive, send)
            return
        self._requests, self._bytes = self._requests + 1, self._bytes + size
        try:
            await self.app(scope, receive, send)
        finally:
            self._requests, self._bytes = self._requests - 1, self._bytes - size


def _length(scope: Scope, most: int) -> int:
    """Give the length of a body; the server in front of this one has checked that it is a number."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return most
    told = headers.get(b"content-length", b"0")
    return min(int(told), most) if told.isdigit() else most


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    said = {
        "error": Overloaded.code,
        "error_description": f"the server holds as many requests as it can; try again in {_PAUSE} s",
        "retry_after": _PAUSE,
    }
    headers = {"Retry-After": str(_PAUSE), "Connection": "close"}
    await JSONResponse(said, status_code=503, headers=headers)(scope, receive, send)
