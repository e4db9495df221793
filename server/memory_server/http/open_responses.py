"""Ends HTTP responses whose bearer token has ended, and streams that their client does not read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import anyio
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory_core.errors import MemoryServiceError
from memory_core.records.access import Access

CHECK_SECONDS = 10.0
"""How often the token of a waiting response is checked."""
_FRESH_SECONDS = 0.1
_PREFIX = b"bearer "


class OpenResponses:
    """Checks the token of each open response again: now and then, and before each part of a GET stream.

    The gate checks the token before a call is answered. `verify` is None while authentication is off. A client has
    `send_seconds` to make room for the next part.
    """

    def __init__(
        self, app: ASGIApp, verify: Callable[[str], Awaitable[Access | None]] | None, send_seconds: float
    ) -> None:
        self.app = app
        self._verify, self._send_seconds = verify, send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        response = _OpenResponse(self._verify, scope, send, self._send_seconds)
        with response.ending:
            watch = asyncio.create_task(response.watch())
            try:
                await self.app(scope, receive, response.send)
            finally:
                watch.cancel()
        if response.ending.cancelled_caught:
            await response.finish(receive)


class _OpenResponse:
    def __init__(
        self, verify: Callable[[str], Awaitable[Access | None]] | None, scope: Scope, send: Send, seconds: float
    ) -> None:
        self.ending = anyio.CancelScope()
        self._token = _bearer_token(scope)
        self._verify = verify if self._token else None
        self._scope, self._send, self._seconds = scope, send, seconds
        self._checked_at, self._started, self._unread = time.monotonic(), False, False

    async def send(self, message: Message) -> None:
        if self._scope["method"] == "GET" and time.monotonic() - self._checked_at > _FRESH_SECONDS:
            await self._check()
        self._started = True
        with anyio.move_on_after(self._seconds) as waiting:
            await self._send(message)
        if waiting.cancelled_caught:
            self._unread = True
            self.ending.cancel()
            await asyncio.sleep(0)

    async def watch(self) -> None:
        while self._verify:
            await asyncio.sleep(CHECK_SECONDS)
            await self._check()

    async def finish(self, receive: Receive) -> None:
        """End the response that was cut off, as far as its client reads it."""
        if not self._started:
            await Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})(self._scope, receive, self._send)
        elif not self._unread:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _check(self) -> None:
        """Cut the response off if its token has ended; not while Redis or the issuer does not answer."""
        self._checked_at = time.monotonic()
        if self._verify is None:
            return
        try:
            access = await self._verify(self._token)
        except MemoryServiceError:
            return
        if access is None:
            self.ending.cancel()
            await asyncio.sleep(0)


def _bearer_token(scope: Scope) -> str:
    given: bytes = dict(scope["headers"]).get(b"authorization", b"")
    return given[len(_PREFIX) :].strip().decode("latin-1") if given.lower().startswith(_PREFIX) else ""
