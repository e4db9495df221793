"""Reads request bodies before the requests are served, with limits of bytes, time and JSON values.

A body that is not complete holds no place of other clients: each address has a share of the bytes, and the body that
has waited longest gives way.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mcp_types import INVALID_REQUEST, ErrorData, JSONRPCError
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory_core.errors import InvalidArgument, Overloaded
from memory_core.records.bounded_json import has_too_many_values
from memory_core.settings.groups import LimitSettings

SMALL_BODY = 20_000
"""Bytes of a body on every path that is not for tool calls, such as the login."""
MCP = "/mcp"
_CALLS = "/api/call/"
GRACE_SECONDS = 10.0
_SLOWEST = 65_536
"""Bytes per second that a client must send, after the grace."""
_SHARE = 4
"""One address may hold this part of the bytes that all may hold."""
_FIRST_CHECK = 1 << 17
"""Bytes after which the JSON values are counted for the first time; then each time that a body has doubled."""
_OVERHEAD = 4096
"""Bytes that a body counts for before its first byte."""
PAUSE = 1
_NETWORK = 8
"""Bytes of an IPv6 address that name its network."""


class _TooManyValues(ValueError):
    """A body has too many JSON values."""


class BodyLimits:
    """Serves a request once its body is complete, and answers 408, 413 or 503 if that takes too long or too much."""

    def __init__(self, app: ASGIApp, limits: LimitSettings) -> None:
        self.app = app
        self._limits = limits
        share = max(limits.request_bytes // _SHARE, min(limits.body_bytes + _OVERHEAD, limits.request_bytes))
        self._held = HeldBytes(limits.request_bytes, share)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"]) if scope["type"] == "http" else {}
        declared = _declared(headers)
        if declared == 0:
            await self.app(scope, receive, send)
            return
        is_mcp = scope["path"] == MCP
        for_calls = is_mcp or scope["path"].startswith(_CALLS)
        most = self._limits.body_bytes if for_calls else SMALL_BODY
        if is_mcp and declared and declared > most:
            await self.app(scope, receive, send)  # the SDK checks the token and then refuses the length, both unread
            return
        with self._held.by(address_of(scope)) as body:
            try:
                content = await self._read(body, receive, declared or most, most, for_calls)
            except _TooManyValues:
                content = _refusal(413, "the request has too many JSON values", is_mcp)
            if isinstance(content, bytes):
                whole: Message = {"type": "http.request", "body": content, "more_body": False}
                await self.app(scope, replay(whole, receive), send)
            elif content is not None:
                await content(scope, receive, send)

    async def _read(
        self, body: Body, receive: Receive, expected: int, most: int, is_json: bool
    ) -> bytes | Response | None:
        """Return the body, an answer that refuses it, or None if the client left. Raises _TooManyValues."""
        if expected > most:
            return _refusal(413, f"the request is longer than {most} bytes")
        if expected > self._limits.request_bytes:
            return unavailable()
        content, unchecked_from = bytearray(), _FIRST_CHECK
        try:
            async with asyncio.timeout(GRACE_SECONDS + expected / _SLOWEST) as body.deadline:
                has_room, more = self._held.add(body, _OVERHEAD), True
                while has_room and more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    content += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(content) > most:
                        return _refusal(413, f"the request is longer than {most} bytes")
                    if is_json and (not more or len(content) > unchecked_from):
                        if has_too_many_values(content):
                            raise _TooManyValues
                        unchecked_from = 2 * len(content)
                    has_room = self._held.add(body, len(content) + _OVERHEAD - body.size)
        except TimeoutError:
            return unavailable() if body.gave_way else _too_slow()
        if not has_room:
            return unavailable()
        self._held.complete(body)
        return bytes(content)


@dataclass(slots=True, eq=False)
class Body:
    """The body of one request, and until when it must be complete."""

    address: str
    size: int = 0
    deadline: asyncio.Timeout | None = field(default=None, repr=False)
    gave_way: bool = False


class HeldBytes:
    """The bytes of all bodies, from their first byte until their requests are answered.

    One address holds at most `share` bytes of incomplete bodies, all hold at most `most` bytes.
    """

    def __init__(self, most: int, share: int) -> None:
        self._most, self._share = most, share
        self._total = 0
        self._incomplete: dict[str, dict[Body, None]] = {}
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def by(self, address: str) -> Generator[Body]:
        """Hold the bytes of one body while inside."""
        body = Body(address)
        try:
            yield body
        finally:
            self.complete(body)
            self._total -= body.size

    def add(self, body: Body, size: int) -> bool:
        """Count more bytes of a body. Older incomplete bodies give way. Returns False if there is no room."""
        while self._bytes[body.address] + size > self._share:
            if not self._end_oldest(body.address, body):
                return False
        while self._total + size > self._most:
            if not self._end_oldest(max(self._bytes, key=self._bytes.__getitem__), body):
                return False
        self._incomplete.setdefault(body.address, {})[body] = None
        self._bytes[body.address] += size
        self._total += size
        body.size += size
        return True

    def complete(self, body: Body) -> None:
        """Count a body no longer as incomplete."""
        bodies = self._incomplete.get(body.address, {})
        if body in bodies:
            del bodies[body]
            self._bytes[body.address] -= body.size
            if not bodies:
                del self._incomplete[body.address], self._bytes[body.address]

    def _end_oldest(self, address: str, newcomer: Body) -> bool:
        oldest = next(iter(self._incomplete.get(address, ())), newcomer)
        if oldest is newcomer or oldest.deadline is None:
            return False
        oldest.gave_way = True
        oldest.deadline.reschedule(asyncio.get_running_loop().time())
        self.complete(oldest)
        self._total -= oldest.size
        oldest.size = 0
        return True


def _declared(headers: dict[bytes, bytes]) -> int | None:
    """Return the declared length of a body; None if it is unknown."""
    if b"transfer-encoding" in headers:
        return None
    declared = headers.get(b"content-length", b"0")
    # The parser admits numbers below 2**64 only.
    return int(declared) if declared.isdigit() else None


def address_of(scope: Scope) -> str:
    """Return the client's address; of IPv6 the network, because one client can use all addresses of its network."""
    host = str((scope.get("client") or ("",))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else address.packed[:_NETWORK].hex()


def is_own_machine(scope: Scope) -> bool:
    """Whether a client has the usual address of this machine, which all its programs share."""
    return (scope.get("client") or ("",))[0] in ("127.0.0.1", "::1")


def replay(message: Message, receive: Receive) -> Receive:
    """Return a `receive` that begins with a message that was read already."""
    replayed = [message]

    async def replayed_first() -> Message:
        return replayed.pop() if replayed else await receive()

    return replayed_first


def _refusal(status: int, problem: str, is_mcp: bool = False) -> Response:
    if is_mcp:
        error = JSONRPCError(jsonrpc="2.0", id=None, error=ErrorData(code=INVALID_REQUEST, message=problem))
        return JSONResponse(error.model_dump(mode="json", exclude_unset=True), status_code=status)
    return JSONResponse({"error": InvalidArgument(problem, hint="send less at a time").details()}, status_code=status)


def _too_slow() -> Response:
    answer = _refusal(408, "the body of the request took too long")
    answer.headers["Connection"] = "close"
    return answer


def unavailable(problem: str = "the server has too many open requests") -> Response:
    """Answer that there is no room for a request."""
    description = f"{problem}; try again in {PAUSE} s"
    content = {"error": Overloaded.code, "error_description": description, "retry_after": PAUSE}
    return JSONResponse(content, status_code=503, headers={"Retry-After": str(PAUSE), "Connection": "close"})
