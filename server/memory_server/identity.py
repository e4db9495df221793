"""Who is calling: read from the connection, never from a tool's arguments.

With auth off the declared name is believed: the flag or environment on stdio, a header or URL parameter over
HTTP, else the client's own name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context

from memory_core.errors import InvalidArgument
from memory_core.names import check_name, to_name
from memory_core.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import Request

    from memory_server.usecases.principals import Caller

AGENT_HEADER, AGENT_PARAMETER = "x-agent-id", "agent"
NAMESPACE_HEADER, NAMESPACE_PARAMETER = "x-namespace", "namespace"
ANONYMOUS = "anonymous"


def caller_of(context: Context[Any, Any], settings: Settings) -> Caller:
    """Name the caller of a tool or resource; see `caller_of_request`."""
    return caller_of_request(context.request_context, settings)


def caller_of_request(context: ServerRequestContext[Any, Any], settings: Settings) -> Caller:
    """Name the caller of a request.

    Raises:
        InvalidArgument: a declared name is not a Name, or header and URL disagree.
    """
    from memory_server.usecases.principals import Caller

    request: Request | None = context.request
    if request is None:
        return Caller(settings.namespace, settings.agent or _client_name(context))
    agent = _declared(request, AGENT_HEADER, AGENT_PARAMETER, "agent")
    namespace = _declared(request, NAMESPACE_HEADER, NAMESPACE_PARAMETER, "namespace")
    return Caller(namespace or settings.namespace, agent or settings.agent or _client_name(context))


def _declared(request: Request, header: str, parameter: str, what: str) -> str | None:
    by_header, by_url = request.headers.get(header), request.query_params.get(parameter)
    if by_header and by_url and by_header != by_url:
        raise InvalidArgument(f"the header {header} and the URL's {parameter} differ", hint="send one of them")
    declared = by_header or by_url
    return check_name(declared, what) if declared else None


def _client_name(context: ServerRequestContext[Any, Any]) -> str:
    params = context.session.client_params
    return to_name(params.client_info.name, ANONYMOUS) if params else ANONYMOUS
