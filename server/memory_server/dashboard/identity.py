"""Identifies the caller at the dashboard: as at /mcp, or by a session.

The access of a session takes the place of the connection's own proof, so that gate, audit and tools work as at /mcp.
The token behind a session is checked for each request.
"""

from __future__ import annotations

from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from starlette.requests import Request
from starlette.responses import Response

from memory_core.errors import Forbidden, Unauthenticated
from memory_core.records.access import SCOPES, Access
from memory_core.records.names import check_name
from memory_server.access.gate import SdkVerifier
from memory_server.access.identity import (
    AGENT_HEADER,
    AGENT_PARAMETER,
    NAMESPACE_HEADER,
    NAMESPACE_PARAMETER,
    OPERATOR,
    caller_of,
    http_access,
)
from memory_server.dashboard.sessions import LONGEST_SECONDS, Session, Sessions
from memory_server.engine.request import Caller
from memory_server.runtime import Runtime

OPERATOR_NAME = "operator"
_BY_SESSION = "memory.session"
_AGAIN = "log in again"


class _Page:
    """The client of a request: it says nothing of itself and can be asked nothing."""

    client_params: None = None
    client_capabilities: None = None

    async def report_progress(self, *_: Any) -> None:
        """Do nothing: a page has no progress to show."""


class Identifier:
    """Finds out who sent a request, and keeps the sessions."""

    def __init__(self, runtime: Runtime, server: MCPServer[Any]) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._server = server
        self._verifier = SdkVerifier(runtime.gate, runtime.settings.auth.issuer)
        self.sessions = Sessions()

    async def identify(self, request: Request) -> ServerRequestContext[Any, Any]:
        """Give the context by which gate and tools know the caller.

        Raises:
            Unauthenticated: there is no proof where one is needed, or it is no longer good.
        """
        session = self._fitting(request)
        request.scope[_BY_SESSION] = session
        if session and session.is_operator:
            request.scope[OPERATOR] = self._operator(request, session)
        elif session and not isinstance(request.scope.get("user"), AuthenticatedUser):
            access = await self._verifier.verify_token(session.token or "")
            if access is None:
                self.sessions.close(request.cookies.get(self.cookie_name(request)))
                raise Unauthenticated("the token is no longer valid", hint=_AGAIN)
            request.scope["user"] = AuthenticatedUser(access)
        page: Any = _Page()
        return ServerRequestContext(
            session=page, lifespan_context={}, protocol_version="2026-07-28", method="tools/call", request=request
        )

    async def caller(self, request: Request) -> Caller:
        """Name the sender of a request; see `identify` and `caller_of`."""
        context = await self.identify(request)
        return caller_of(context, self._settings, http_access(request, self._settings))

    def tool_context(self, context: ServerRequestContext[Any, Any]) -> Context[Any, Any]:
        """Give what a tool is called with."""
        return Context(request_context=context, mcp_server=self._server)

    def session_of(self, request: Request) -> Session | None:
        """Give the session whose cookie came along; a bearer token beside it counts more."""
        if "authorization" in request.headers and self._settings.auth.mode != "off":
            return None
        return self.sessions.find(request.cookies.get(self.cookie_name(request)))

    def is_held(self, request: Request) -> bool:
        """Whether a request that goes on for long did not come by a session that has ended meanwhile."""
        return request.scope.get(_BY_SESSION) is None or self.session_of(request) is not None

    def _fitting(self, request: Request) -> Session | None:
        """Give the session of a request. An operator's session counts only for pages of its own namespace."""
        session = self.session_of(request)
        declared = request.headers.get(NAMESPACE_HEADER) or request.query_params.get(NAMESPACE_PARAMETER)
        if session and session.is_operator and declared not in (None, "", session.namespace):
            return None
        return session

    async def log_in(self, request: Request, token: str) -> str:
        """Open a session by a bearer token and give its cookie.

        Raises:
            Unauthenticated: the token is not valid.
        """
        if self._settings.auth.mode == "off":
            raise Forbidden("this server asks for no tokens", hint="name the agent by ?agent= in the URL")
        access = await self._verifier.verify_token(token)
        if access is None:
            raise Unauthenticated("the token is not valid", hint="ask whoever runs the memory for a new one")
        request.scope["user"] = AuthenticatedUser(access)
        return self.sessions.open("", token)

    async def open_for_operator(self, request: Request, key: str) -> str:
        """Open an operator's session by a one-time key and give its cookie.

        Raises:
            Unauthenticated: the key is unknown, expired or spent.
        """
        from memory_server.access.operator_login import redeem

        service = await self._runtime.service()
        namespace = await redeem(service.backend, key)
        if namespace is None:
            self._runtime.gate.note_bad_token()
            raise Unauthenticated(
                "this one-time URL was used already, or is too old", hint="`redis-memory dashboard` prints another"
            )
        cookie = self.sessions.open(namespace)
        request.scope[OPERATOR] = self._operator(request, Session(namespace))
        return cookie

    def set_cookie(self, request: Request, response: Response, cookie: str) -> None:
        """Have the browser keep the cookie of a session, away from scripts and from other sites' requests."""
        self.drop_session(request)
        response.set_cookie(
            self.cookie_name(request),
            cookie,
            max_age=int(LONGEST_SECONDS),
            path="/",
            secure=self._is_secure,
            httponly=True,
            samesite="strict",
        )

    def drop_session(self, request: Request) -> None:
        """End the session that a request came with."""
        self.sessions.close(request.cookies.get(self.cookie_name(request)))

    def cookie_name(self, request: Request) -> str:
        """Name the cookie; a browser keeps those of two ports of one host together."""
        name = f"memory_session_{request.url.port}" if request.url.port else "memory_session"
        return f"__Host-{name}" if self._is_secure else name

    @property
    def _is_secure(self) -> bool:
        return self._settings.tls_cert is not None or self._settings.behind_proxy

    def _operator(self, request: Request, session: Session) -> Access:
        """Give an operator all scopes. While authentication is off the operator may act under any name."""
        declared = request.headers.get(AGENT_HEADER) or request.query_params.get(AGENT_PARAMETER)
        believed = declared if self._settings.auth.mode == "off" else None
        agent = check_name(believed, "agent") if believed else OPERATOR_NAME
        return Access(agent, session.namespace, frozenset(SCOPES), float("inf"), "operator-session")
