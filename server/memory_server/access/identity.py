"""Reads the caller's identity from the connection, never from a tool's arguments.

With authentication on, the token names the caller, and a declared name must match it. With authentication off, the
declared name counts: the flag or environment on stdio, a header or URL parameter over HTTP, else the client's name.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.context import ServerRequestContext

from memory_core.errors import Forbidden, InvalidArgument, Unauthenticated, echo
from memory_core.records.access import Access, known_scopes
from memory_core.records.authority import Effect
from memory_core.records.names import RESERVED_AGENTS, check_agent_name, check_name, to_name
from memory_core.settings.settings import Settings
from memory_server.engine.presence import session_id
from memory_server.engine.request_context import Caller

if TYPE_CHECKING:
    from starlette.requests import Request

AGENT_HEADER, AGENT_PARAMETER = "x-agent-id", "agent"
NAMESPACE_HEADER, NAMESPACE_PARAMETER = "x-namespace", "namespace"
AGENT_CLAIM, NAMESPACE_CLAIM, TOKEN_CLAIM, CHECKED_CLAIM = "agent", "namespace", "token", "checked_at"
ANONYMOUS = "anonymous"
_ADDRESS = re.compile(r"[0-9A-Fa-f.:%a-z]{1,64}")

OPERATOR = "memory.operator"
"""Key in an ASGI scope for the access of an operator's dashboard session. Clients cannot set it."""
REPEATED = "memory.repeated"
"""Key in an ASGI scope for a request that the server repeats to rebuild a client's session. Clients cannot set it."""
SESSION_IS_OPEN = "memory.session_is_open"
"""Key in an ASGI scope for a function that says whether the dashboard session of a request is still open."""
REST = "memory.rest"
"""Key in an ASGI scope of a request to the REST API; false for one of the dashboard's pages."""
SESSION_HEADER = "mcp-session-id"


@dataclass(frozen=True, slots=True)
class SessionOwner:
    """The namespace and the agent that a connection names; the agent is empty if it names none."""

    namespace: str
    agent: str


def caller_of(context: ServerRequestContext[Any, Any], settings: Settings, access: Access | None) -> Caller:
    """Return the caller of a request; `access` is what its token grants. Raises InvalidArgument, Forbidden."""
    agent, namespace = _declared_names(context, settings)
    if access is None:
        name = check_agent_name(agent or settings.agent or _client_name(context))
        return Caller(namespace or settings.namespace, name, origin=_origin(context, None))
    check_names(access, agent, namespace)
    return Caller(
        access.namespace,
        access.agent,
        admin=access.may(Effect.ACT_FOR_OTHERS),
        oversees=access.may(Effect.OVERSEE),
        public_only=access.may(Effect.READ_MEMORIES) and not access.may(Effect.READ_PRIVATE),
        sees_server=access.may(Effect.OVERSEE),
        origin=_origin(context, access),
    )


def refused_caller(context: ServerRequestContext[Any, Any], settings: Settings, access: Access | None) -> Caller:
    """Return the caller for the audit entry if `caller_of` refuses the declared names."""
    if access is not None:
        return Caller(access.namespace, access.agent, origin=_origin(context, access))
    return Caller(settings.namespace, settings.agent or ANONYMOUS, origin=_origin(context, None))


def check_names(access: Access, agent: str | None, namespace: str | None) -> None:
    """Raise Forbidden if a declared name is not the token's."""
    for declared, own, what in ((agent, access.agent, "agent"), (namespace, access.namespace, "namespace")):
        if declared is not None and declared != own:
            raise Forbidden(f"{what} {echo(declared)} is not that of your token", hint=f"leave the {what} out")


def declared_on_stdio(settings: Settings) -> tuple[str | None, str | None]:
    """Return the agent and the namespace that a stdio server was started with."""
    return settings.agent, settings.namespace if "namespace" in settings.model_fields_set else None


def http_access(request: Request, settings: Settings) -> Access | None:
    """Return what an HTTP request's token grants, None if none is needed; raises Unauthenticated if it is missing."""
    operator: Access | None = request.scope.get(OPERATOR)
    if operator is not None or settings.auth.mode == "off":
        return operator
    user = request.scope.get("user")
    if not isinstance(user, AuthenticatedUser):
        raise Unauthenticated("there is no token")
    claims = user.access_token.claims or {}
    scopes, token = known_scopes(user.scopes), claims.get(TOKEN_CLAIM, "")
    return Access(claims[AGENT_CLAIM], claims[NAMESPACE_CLAIM], scopes, float("inf"), token)


def checked_at(request: Request) -> float:
    """Return the monotonic time at which the SDK's middleware checked the token of an HTTP request."""
    user = request.scope.get("user")
    claims = user.access_token.claims if isinstance(user, AuthenticatedUser) else None
    return (claims or {}).get(CHECKED_CLAIM, float("-inf"))


def holder_of(request: Request, settings: Settings) -> tuple[str, str]:
    """Return whose share an HTTP request takes: its agent's, or its address's if it names no agent."""
    try:
        access = http_access(request, settings)
    except Unauthenticated:
        return "", _address(request)
    namespace, agent = _named(request, settings, access)
    return (namespace, agent) if agent else ("", _address(request))


def session_owner(request: Request, settings: Settings) -> SessionOwner:
    """Return whose session an HTTP request may use; raises Unauthenticated if its token is missing."""
    return SessionOwner(*_named(request, settings, http_access(request, settings)))


def _named(request: Request, settings: Settings, access: Access | None) -> tuple[str, str]:
    """Return the namespace and the agent of a request; with authentication off the agent may be empty."""
    if access is not None:
        return access.namespace, access.agent
    agent = request.headers.get(AGENT_HEADER) or request.query_params.get(AGENT_PARAMETER) or settings.agent
    namespace = request.headers.get(NAMESPACE_HEADER) or request.query_params.get(NAMESPACE_PARAMETER)
    return namespace or settings.namespace, agent or ""


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _origin(context: ServerRequestContext[Any, Any], access: Access | None) -> str:
    if context.request is None:
        origin = f"stdio {os.getpid()}"
    else:
        client = context.request.client
        origin = f"http {client.host}" if client and _ADDRESS.fullmatch(client.host) else "http"
    return f"{origin} token {access.token}" if access and access.token else origin


def _declared_names(context: ServerRequestContext[Any, Any], settings: Settings) -> tuple[str | None, str | None]:
    request: Request | None = context.request
    if request is None:
        return declared_on_stdio(settings)
    agent = _declared(request, AGENT_HEADER, AGENT_PARAMETER, "agent")
    return agent, _declared(request, NAMESPACE_HEADER, NAMESPACE_PARAMETER, "namespace")


def _declared(request: Request, header: str, parameter: str, what: str) -> str | None:
    by_header, by_url = request.headers.get(header), request.query_params.get(parameter)
    if by_header and by_url and by_header != by_url:
        raise InvalidArgument(f"the header {header} and the URL's {parameter} differ", hint="send one of them")
    declared = by_header or by_url
    return check_name(declared, what) if declared else None


def session_of(context: ServerRequestContext[Any, Any], process_session: str) -> str:
    """Return the opaque id of the client's session; empty for the dashboard.

    Without a session of the protocol, all connections of a client's name, or of the REST API, count as one.
    """
    request: Request | None = context.request
    if request is None:
        return process_session
    is_rest: bool | None = request.scope.get(REST)
    if is_rest is not None:
        return session_id("rest", "") if is_rest else ""
    if session := request.headers.get(SESSION_HEADER):
        return session_id("http", session)
    params = context.session.client_params
    return session_id("client", params.client_info.name if params else "")


def _client_name(context: ServerRequestContext[Any, Any]) -> str:
    params = context.session.client_params
    name = to_name(params.client_info.name, ANONYMOUS) if params else ANONYMOUS
    return ANONYMOUS if name in RESERVED_AGENTS else name
