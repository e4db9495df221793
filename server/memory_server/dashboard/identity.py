"""Identifies the dashboard's caller as /mcp does, or by a session.

A session's access replaces the credentials of the connection, so gate, audit and tools work as at /mcp. The token of a
session is checked for each request.
"""

from __future__ import annotations

from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from starlette.requests import Request
from starlette.responses import Response

from memory_core.errors import Forbidden, Unauthenticated
from memory_core.records.access import Access
from memory_core.records.authority import Effect, Power
from memory_server.access import identity
from memory_server.access.gate import SdkVerifier
from memory_server.dashboard.sessions import LONGEST_SECONDS, Proof, Session, Sessions
from memory_server.engine.request_context import Caller
from memory_server.mcp import lazy
from memory_server.runtime import Runtime

OPERATOR_NAME = "operator"
PAGE_KEY_HEADER, PAGE_KEY_PARAMETER = "x-memory-session", "session"
"""Where a page sends its key; the stream of events cannot have headers."""
_ROLE = frozenset[Power]({"operator"})
_AGAIN = "log in again"
_BROWSER_HEADER = "sec-fetch-site"
"""Browsers add it to each request of a page."""


class _Page:
    """A client without name and capabilities, in place of an MCP session."""

    client_params: None = None
    client_capabilities: None = None

    async def report_progress(self, *_: Any) -> None:
        """Do nothing: pages show no progress."""


class Identifier:
    """Finds out who sent a request, and holds the sessions."""

    def __init__(self, runtime: Runtime, server: MCPServer[Any]) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._server = server
        self._verifier = SdkVerifier(runtime.gate, runtime.settings.auth.issuer)
        self.sessions = Sessions()

    async def identify(self, request: Request) -> ServerRequestContext[Any, Any]:
        """Return the context that identifies the caller to gate and tools.

        Raises:
            Unauthenticated: the token of the session is no longer valid.
        """
        session = self._session_for_page(request)
        request.scope[identity.REST] = session is None and _BROWSER_HEADER not in request.headers
        if session:
            request.scope[identity.SESSION_IS_OPEN] = lambda: self.session_of(request) is not None
        if session and session.is_operator:
            request.scope[identity.OPERATOR] = _operator(session.namespace)
        elif session and not isinstance(request.scope.get("user"), AuthenticatedUser):
            access = await self._verifier.verify_token(session.token or "")
            if access is None:
                self.drop_session(request)
                raise Unauthenticated("the token is no longer valid", hint=_AGAIN)
            request.scope["user"] = AuthenticatedUser(access)
        page: Any = _Page()
        return ServerRequestContext(
            session=page, lifespan_context={}, protocol_version="2026-07-28", method="tools/call", request=request
        )

    async def caller(self, request: Request) -> Caller:
        """Return the sender of a request; raises as `identify` and `caller_of`."""
        context = await self.identify(request)
        return identity.caller_of(context, self._settings, identity.http_access(request, self._settings))

    def effects(self, request: Request) -> list[Effect]:
        """Return what an identified sender may do, for the page to show the controls of that only."""
        access = identity.http_access(request, self._settings)
        return [effect for effect in Effect if access is None or access.may(effect)]

    def tool_context(self, context: ServerRequestContext[Any, Any]) -> Context[Any, Any]:
        """Return the context that a tool is called with."""
        return Context(request_context=context, mcp_server=self._server)

    def session_of(self, request: Request) -> Session | None:
        """Return the session of the request's cookie and page key; a bearer token takes precedence."""
        if "authorization" in request.headers and self._settings.auth.mode != "off":
            return None
        return self.sessions.find(self._proof(request))

    def _session_for_page(self, request: Request) -> Session | None:
        """Return the session of a request.

        An operator's session is valid only for pages of its namespace. With authentication off, a page that names an
        agent acts as that agent, as any page may, and not as the operator.
        """
        session = self.session_of(request)
        if session is None or not session.is_operator:
            return session
        namespace = _declared(request, identity.NAMESPACE_HEADER, identity.NAMESPACE_PARAMETER)
        agent = _declared(request, identity.AGENT_HEADER, identity.AGENT_PARAMETER)
        is_agent = agent is not None and self._settings.auth.mode == "off"
        return None if is_agent or namespace not in (None, session.namespace) else session

    async def log_in(self, request: Request, token: str) -> Proof:
        """Open a session by a bearer token and return its proof; raises Unauthenticated if it is not valid."""
        if self._settings.auth.mode == "off":
            raise Forbidden("this server uses no tokens", hint="name the agent with ?agent= in the URL")
        access = await self._verifier.verify_token(token)
        if access is None:
            raise Unauthenticated("the token is not valid", hint="ask the operator for a new one")
        request.scope["user"] = AuthenticatedUser(access)
        return self.sessions.open("", token)

    async def open_for_operator(self, request: Request, key: str) -> Proof:
        """Open an operator's session by a one-time key and return its proof.

        Raises:
            Unauthenticated: the key is unknown, expired or used.
        """
        namespace = await lazy.operator_login.redeem((await self._runtime.service()).backend, key)
        if namespace is None:
            self._runtime.gate.note_bad_token()
            raise Unauthenticated(
                "this one-time URL was used already or has expired", hint="`redis-memory dashboard` prints another"
            )
        request.scope[identity.OPERATOR] = _operator(namespace)
        return self.sessions.open(namespace)

    def set_cookie(self, request: Request, response: Response, cookie: str) -> None:
        """Set the cookie of a session, which scripts and other sites' requests cannot use."""
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
        """Close the session of a request."""
        self.sessions.close(self._proof(request))

    def cookie_name(self, request: Request) -> str:
        """Return the name of the cookie. It has the port, because a browser shares cookies between ports."""
        name = f"memory_session_{request.url.port}" if request.url.port else "memory_session"
        return f"__Host-{name}" if self._is_secure else name

    @property
    def _is_secure(self) -> bool:
        return self._settings.tls_cert is not None or self._settings.behind_proxy

    def _proof(self, request: Request) -> Proof:
        key = request.headers.get(PAGE_KEY_HEADER) or request.query_params.get(PAGE_KEY_PARAMETER)
        return Proof(request.cookies.get(self.cookie_name(request)) or "", key or "")


def _declared(request: Request, header: str, parameter: str) -> str | None:
    return request.headers.get(header) or request.query_params.get(parameter) or None


def _operator(namespace: str) -> Access:
    """Return access with the role of an operator, which only looks."""
    return Access(OPERATOR_NAME, namespace, _ROLE, float("inf"), "operator-session")
