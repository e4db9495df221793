"""Limits the open HTTP requests and the bytes of their bodies, before their tokens are checked.

Each address has a share of the requests. Once its token is checked, a request counts against its agent instead.
"""

from __future__ import annotations

from collections.abc import Hashable

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory_core.errors import Overloaded
from memory_core.settings.groups import LimitSettings
from memory_server.engine.shares import Shares

PLACE = "memory.place"
"""Key in an HTTP request's scope of the place that it takes among the open requests."""
_PAUSE = 1


class RequestLimits:
    """Limits the open requests and the bytes of their bodies; a body of unknown length counts as the longest."""

    def __init__(self, app: ASGIApp, requests: Shares, limits: LimitSettings) -> None:
        self.app = app
        self._requests, self._limits = requests, limits
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size = _length(dict(scope["headers"]), self._limits.body_bytes)
        place = Place(self._requests, scope["client"][0] if scope["client"] else "")
        if self._bytes + size > self._limits.request_bytes or not place.take():
            await unavailable()(scope, receive, send)
            return
        self._bytes += size
        try:
            await self.app({**scope, PLACE: place}, receive, send)
        finally:
            self._bytes -= size
            place.leave()


class Place:
    """The place of one request among the open ones."""

    def __init__(self, shares: Shares, holder: Hashable) -> None:
        self._shares, self._holder = shares, holder

    def take(self) -> bool:
        return self._shares.take(self._holder)

    def pass_to(self, holder: Hashable) -> bool:
        """Count the request against another holder; False, and unchanged, if that holder has too many."""
        self._shares.give_back(self._holder)
        if has_room := self._shares.has_room(holder):
            self._holder = holder
        self._shares.force(self._holder)
        return has_room

    def leave(self) -> None:
        self._shares.give_back(self._holder)


def replay(message: Message, receive: Receive) -> Receive:
    """Return a `receive` that begins with a message that was read already."""
    replayed = [message]

    async def replaying() -> Message:
        return replayed.pop() if replayed else await receive()

    return replaying


def unavailable(problem: str = "the server has too many open requests") -> Response:
    """Answer 503, to be tried again soon."""
    content = {
        "error": Overloaded.code,
        "error_description": f"{problem}; try again in {_PAUSE} s",
        "retry_after": _PAUSE,
    }
    return JSONResponse(content, status_code=503, headers={"Retry-After": str(_PAUSE), "Connection": "close"})


def _length(headers: dict[bytes, bytes], longest: int) -> int:
    declared = headers.get(b"content-length", b"0")
    if b"transfer-encoding" in headers or not declared.isdigit():
        return longest
    return min(int(declared), longest)
