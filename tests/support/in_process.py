"""Calls the tools of a server without a connection: the same gate, arguments and answers, many times faster.

The caller's identity is put into the request, as the middleware does after it has checked a token.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import CallToolResult
from starlette.requests import Request

from memory_core.records.access import Scope, check_scopes
from memory_server.access.identity import AGENT_CLAIM, NAMESPACE_CLAIM
from memory_server.access.tokens import issue_token
from memory_server.mcp.server import build_server
from support.stack import Server, answer_of

WRITER: tuple[Scope, ...] = ("read", "write", "tasks")
ADMIN: tuple[Scope, ...] = (*WRITER, "admin")


@dataclass(frozen=True, slots=True)
class _Session:
    """A client without client info and without elicitation."""

    client_params: None = None
    client_capabilities: None = None

    async def report_progress(self, *_: Any) -> None:
        """No caller asks for progress."""


async def _connected() -> Any:
    """The client never disconnects."""
    await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class Direct:
    """One agent of one namespace, with its own token."""

    tools: MCPServer[Any]
    agent: str
    namespace: str
    request: Request

    async def raw(self, tool: str, /, **arguments: Any) -> CallToolResult:
        """Call a tool and return the whole result."""
        request: ServerRequestContext[Any, Any] = ServerRequestContext(
            session=cast(Any, _Session()),
            lifespan_context={},
            protocol_version="2026-07-28",
            method="tools/call",
            request=self.request,
        )
        context: Context[Any, Any] = Context(request_context=request, mcp_server=self.tools)
        result = await self.tools.call_tool(tool, arguments, context)
        assert isinstance(result, CallToolResult)
        return result

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool and return its structured answer.

        Raises:
            Refused: the tool answered with an error.
        """
        return answer_of(await self.raw(tool, **arguments))


@dataclass(frozen=True, slots=True)
class InProcess:
    """A server whose tools are called directly. Its authentication must be on."""

    server: Server
    tools: MCPServer[Any]

    @classmethod
    def over(cls, server: Server) -> InProcess:
        """Build the tools on the runtime of a server."""
        return cls(server, build_server(server.runtime))

    async def agent(self, name: str, namespace: str, scopes: tuple[Scope, ...] = WRITER) -> Direct:
        """Issue a token and return its holder."""
        backend = self.server.service.backend
        _, token = await issue_token(
            backend, agent=name, namespace=namespace, scopes=check_scopes(scopes), seconds=86_400
        )
        claims = {AGENT_CLAIM: name, NAMESPACE_CLAIM: namespace}
        user = AuthenticatedUser(
            AccessToken(token=token, client_id=f"{namespace}/{name}", scopes=list(scopes), claims=claims)
        )
        scope = {"type": "http", "method": "POST", "headers": [], "query_string": b"", "user": user}
        return Direct(self.tools, name, namespace, Request(scope, receive=_connected))
