"""Reads the caller's identity from the connection, never from a tool's arguments.

With authentication on, the token names the caller, and a declared name must match it. With authentication off, the
declared name counts: the flag or environment on stdio, a header or URL parameter over HTTP, else the client's name.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.context import ServerRequestContext

from memory_core.errors import Forbidden, InvalidArgument, Unauthenticated, echo
from memory_core.records.access import Access, known_scopes
from memory_core.records.authority import Effect
from memory_core.records.names import RESERVED_AGENTS, canonical_name, check_agent_name, check_name, to_name
from memory_core.settings.settings import Settings
from memory_server.contract.given_names import became
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
    agent, namespace = _declared_names(context, settings, exact=access is not None)
    if access is None:
        name = check_agent_name(agent or settings.agent or _client_name(context))
        names = _became(context, settings)
        return Caller(namespace or settings.namespace, name, origin=_origin(context, None), became=names)
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
    return _or_unchanged(namespace or settings.namespace), _or_unchanged(agent) if agent else ""


def _or_unchanged(name: str) -> str:
    """Return the canonical name, or a bad name as it is: its call is refused later."""
    try:
        return canonical_name(name)
    except InvalidArgument:
        return name


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _origin(context: ServerRequestContext[Any, Any], access: Access | None) -> str:
    if context.request is None:
        origin = f"stdio {os.getpid()}"
    else:
        client = context.request.client
        origin = f"http {client.host}" if client and _ADDRESS.fullmatch(client.host) else "http"
    return f"{origin} token {access.token}" if access and access.token else origin


def _declared_names(
    context: ServerRequestContext[Any, Any], settings: Settings, *, exact: bool
) -> tuple[str | None, str | None]:
    """Return the names that a connection declares. A token's name must be `exact`; others become canonical."""
    request: Request | None = context.request
    if request is None:
        return declared_on_stdio(settings)
    check = check_name if exact else canonical_name
    names = [
        [check(given, what) for given in _given(request, header, parameter)] for what, header, parameter in _DECLARING
    ]
    for (_, header, parameter), found in zip(_DECLARING, names, strict=True):
        if len(set(found)) > 1:
            raise InvalidArgument(f"the header {header} and the URL's {parameter} differ", hint="send one of them")
    agent, namespace = (next(iter(found), None) for found in names)
    return agent, namespace


_DECLARING = (
    ("agent", AGENT_HEADER, AGENT_PARAMETER),
    ("namespace", NAMESPACE_HEADER, NAMESPACE_PARAMETER),
)


def _given(request: Request, header: str, parameter: str) -> list[str]:
    """Return the header and the URL parameter of a name, if they are given. Starlette reads headers as Latin-1."""
    by_header = request.headers.get(header, "")
    with suppress(UnicodeError):
        by_header = by_header.encode("latin-1").decode()
    return [given for given in (by_header, request.query_params.get(parameter)) if given]


def _became(context: ServerRequestContext[Any, Any], settings: Settings) -> tuple[str, ...]:
    """Say which declared names are not canonical, and what they became."""
    request: Request | None = context.request
    if request is None:
        given = list(settings.given_names.items())
    else:
        given = [(what, one) for what, *where in _DECLARING for one in _given(request, *where)[:1]]
    return tuple(became(what, one, name) for what, one in given if (name := canonical_name(one, what)) != one)


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
