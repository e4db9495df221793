"""Serves clients of the eras up to 2025-11-25, whose sessions any server process of one Redis can continue.

The SDK keeps a session in the memory of one process. If this process does not have a valid one, it repeats the
client's handshake here, and its subscriptions for a listening stream, under the credential of the client's request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Hashable
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

import anyio
from mcp.server.streamable_http import StreamableHTTPServerTransport as Transport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import INTERNAL_ERROR, INVALID_REQUEST, ErrorData, JSONRPCError
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from memory_core.errors import MemoryServiceError, Overloaded
from memory_core.settings.settings import Settings
from memory_server.access import identity
from memory_server.access.gate import Gate
from memory_server.access.identity import SessionOwner
from memory_server.access.sessions import ClientSession, Sessions
from memory_server.engine.admission import SLOT
from memory_server.engine.presence import session_id
from memory_server.engine.shares import Shares
from memory_server.http.bodies import replay

IDLE_SECONDS = 300.0
"""How long an unused session stays in memory. It is rebuilt when its client comes back."""
_FOLLOW_SECONDS = 2.0
"""How often an open listening stream looks for what its client did at other servers."""
_MOST_SESSIONS = 256
"""Sessions of one agent: thousands of them slow down Python's garbage collection."""
_MOST_PARSED = 65_536
_SESSION, _VERSION = "mcp-session-id", "mcp-protocol-version"
_REPLACED = {
    name.encode() for name in (_SESSION, _VERSION, "accept", "content-type", "content-length", "last-event-id")
}


class SessionServer:
    """Serves the requests that the SDK's session manager would serve, with sessions that survive the process."""

    def __init__(
        self, manager: StreamableHTTPSessionManager, gate: Gate, sessions: Sessions, settings: Settings
    ) -> None:
        self._manager, self._gate, self._sessions, self._settings = manager, gate, sessions, settings
        self._open_here = manager._server_instances  # pyright: ignore[reportPrivateUsage]
        self._serve_modern = manager._handle_request  # pyright: ignore[reportPrivateUsage]
        self._shares = Shares(settings.limits.sessions, _MOST_SESSIONS)
        self._holders: dict[str, Hashable] = {}
        self._locks = WeakValueDictionary[str, asyncio.Lock]()
        manager.session_idle_timeout = IDLE_SECONDS

    def check_room(self, holder: Hashable, headers: Headers, method: str) -> None:
        """Raise Overloaded if a call opens or rebuilds a session, and its agent has too many here."""
        is_here = headers.get(_SESSION) in self._open_here and method != "initialize"
        if is_legacy(headers) and not is_here and not self._has_room(holder):
            raise Overloaded("you have too many open sessions", hint="end some with DELETE", retry_after=1.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = Headers(scope=scope)
        if not is_legacy(headers):
            await self._serve_modern(scope, receive, send)
            return
        given, params = headers.get(_SESSION), None
        if scope["method"] == "POST":
            message = await receive()
            receive, params = replay(message, receive), _initialize_params(message)
        if params is not None or given is None:
            await self._open(params, _without(scope, _SESSION), receive, send)
            return
        owner = identity.session_owner(Request(scope), self._settings)
        session = await self._sessions.find(owner, given)
        if session is None:
            await _refused(404, "Session not found")(scope, receive, send)
        elif scope["method"] == "DELETE":
            await self._end(session, owner, scope, receive, send)
        else:
            await self._continue(session, scope, receive, send)

    async def _open(self, params: dict[str, Any] | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request without a session, which the SDK refuses unless it is a valid `initialize`."""
        owner = identity.session_owner(Request(scope), self._settings)
        session_id = None if params is None else await self._sessions.open(owner, params)
        transport = self._admit(session_id or uuid4().hex, scope)
        if transport is None:
            await _no_room()(scope, receive, send)
            return
        await self._start(transport, scope, receive, send)
        if session_id is None:
            await self._forget(transport)

    async def _continue(self, session: ClientSession, scope: Scope, receive: Receive, send: Send) -> None:
        lock = self._locks.setdefault(session.id, asyncio.Lock())  # a session is rebuilt once
        async with lock:
            transport = await self._live(session.id)
            if transport is None and (transport := self._admit(session.id, scope)) is not None:
                await self._rebuild(session, transport, scope)
        if transport is None:
            await _no_room()(scope, receive, send)
        elif scope["method"] == "GET":
            await self._listen(session, transport, scope, receive, send)
        else:
            await transport.handle_request(scope, receive, send)

    async def _end(
        self, session: ClientSession, owner: SessionOwner, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """End a session at all servers: here at once, there with its next request or the next look of its stream."""
        await self._sessions.end(session)
        if transport := self._open_here.get(session.id):
            await transport.handle_request(scope, receive, send)
            await self._forget(transport)
        else:
            await Response(headers={_SESSION: session.id}, media_type="application/json")(scope, receive, send)
        callers = [(owner.namespace, owner.agent)] if owner.agent else []
        await self._gate.presence.end(session_id("http", session.id), *callers)

    async def _listen(
        self,
        session: ClientSession,
        transport: Transport,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve a listening stream. It begins now: `Last-Event-ID` is ignored, because no events are kept."""
        scope = _without(scope, "last-event-id")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow_others, session, transport, scope)
            await transport.handle_request(scope, receive, send)
            tasks.cancel_scope.cancel()

    async def _follow_others(self, session: ClientSession, transport: Transport, scope: Scope) -> None:
        """Apply to a stream what its client does at other servers: subscribe, unsubscribe, end the session."""
        known = set[str]()
        while True:
            try:
                if await self._sessions.find(session.owner, session.id) is None:
                    await self._forget(transport)
                    return
                followed = await self._sessions.followed(session)
                await self._ask_all(transport, scope, session, "resources/subscribe", followed - known)
                await self._ask_all(transport, scope, session, "resources/unsubscribe", known - followed)
                known = followed
            except MemoryServiceError:
                pass
            await asyncio.sleep(_FOLLOW_SECONDS)

    async def _live(self, session_id: str) -> Transport | None:
        """Return the session's transport in this process, if it is not just going away."""
        transport = self._open_here.get(session_id)
        if transport is None:
            return None
        idle = transport.idle_scope
        if not transport.is_terminated and not (idle is not None and idle.cancel_called):
            return transport
        await self._forget(transport)
        return None

    def _admit(self, session_id: str, scope: Scope) -> Transport | None:
        """Count a session and make its transport; None if its agent has too many."""
        holder = identity.holder_of(Request(scope), self._settings)
        if not self._has_room(holder):
            return None
        self._shares.force(holder)
        self._holders[session_id] = holder
        manager = self._manager
        transport = Transport(
            session_id,
            is_json_response_enabled=manager.json_response,
            security_settings=manager.security_settings,
            idle_timeout=manager.session_idle_timeout,
        )
        self._open_here[session_id] = transport
        return transport

    def _has_room(self, holder: Hashable) -> bool:
        if not self._shares.has_room(holder):
            # The manager does not say when a session ends.
            for session_id in [one for one in self._holders if one not in self._open_here]:
                self._give_back(session_id)
        return self._shares.has_room(holder)

    def _give_back(self, session_id: str) -> None:
        if session_id in self._holders:
            self._shares.give_back(self._holders.pop(session_id))

    async def _start(self, transport: Transport, scope: Scope, receive: Receive, send: Send) -> None:
        await self._manager._serve_opening_request(transport, scope, receive, send)  # pyright: ignore[reportPrivateUsage]

    async def _forget(self, transport: Transport) -> None:
        assert transport.mcp_session_id is not None
        self._give_back(transport.mcp_session_id)
        await self._manager._discard_session(transport.mcp_session_id, transport)  # pyright: ignore[reportPrivateUsage]

    async def _rebuild(self, session: ClientSession, transport: Transport, scope: Scope) -> None:
        """Repeat the handshake of a session. Its listening stream repeats the subscriptions."""
        opening = _message("initialize", session.initialize(), "handshake")
        await self._start(transport, *_request(scope, session, opening))
        if session.id in self._open_here:
            await transport.handle_request(*_request(scope, session, _message("notifications/initialized", {})))

    async def _ask_all(
        self,
        transport: Transport,
        scope: Scope,
        session: ClientSession,
        method: str,
        uris: set[str],
    ) -> None:
        for uri in uris:
            message = _message(method, {"uri": uri}, f"{method} {uri}")
            await transport.handle_request(*_request(scope, session, message))


def is_legacy(headers: Headers) -> bool:
    """Whether a request is of an era up to 2025-11-25, as the SDK decides it."""
    return headers.get(_VERSION, "") in ("", *HANDSHAKE_PROTOCOL_VERSIONS)


def _initialize_params(message: Message) -> dict[str, Any] | None:
    """Return the parameters if a request's body is `initialize`, which is never long."""
    body: bytes = message.get("body", b"")
    if len(body) > _MOST_PARSED or b'"initialize"' not in body:
        return None
    try:
        request: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict) or request.get("method") != "initialize":
        return None
    params = request.get("params")
    return params if isinstance(params, dict) else {}


def _message(method: str, params: dict[str, Any], message_id: str | None = None) -> dict[str, Any]:
    message = {"jsonrpc": "2.0", "method": method, "params": params}
    return message if message_id is None else {**message, "id": message_id}


def _request(scope: Scope, session: ClientSession, message: dict[str, Any]) -> tuple[Scope, Receive, Send]:
    """Make a request of this server's own in a session, with the credential of a client's request."""
    own = {
        _SESSION: session.id,
        _VERSION: session.version,
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
    }
    headers = [(name, value) for name, value in scope["headers"] if name.decode("latin-1") not in _REPLACED]
    headers += [(name.encode(), value.encode()) for name, value in own.items()]
    parts = [{"type": "http.request", "body": json.dumps(message).encode(), "more_body": False}]

    async def receive() -> Message:
        if not parts:
            await asyncio.Event().wait()  # the client stays
        return parts.pop()

    async def send(message: Message) -> None:
        """Drop the answer."""

    repeated = {**scope, "method": "POST", "headers": headers, identity.REPEATED: True}
    repeated.pop(SLOT, None)
    return repeated, receive, send


def _without(scope: Scope, header: str) -> Scope:
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != header.encode()]}


def _refused(status: int, message: str, code: int = INVALID_REQUEST) -> Response:
    error = JSONRPCError(jsonrpc="2.0", id=None, error=ErrorData(code=code, message=message))
    return JSONResponse(error.model_dump(mode="json", by_alias=True, exclude_unset=True), status_code=status)


def _no_room() -> Response:
    answer = _refused(503, "you have too many open sessions; end some with DELETE", INTERNAL_ERROR)
    answer.headers["Retry-After"] = "1"
    return answer
