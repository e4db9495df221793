"""Issues tokens as the command line does and sends plain HTTP requests with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx2

from memory_core.records.access import check_scopes
from memory_server.access.tokens import issue_token
from support.stack import Server

INITIALIZE: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "bare", "version": "1"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


async def issued(
    server: Server, agent: str, namespace: str, scopes: Sequence[str] = ("read", "write", "tasks"), seconds: float = 60
) -> str:
    """Issue a token and return its text."""
    _, text = await issue_token(
        server.service.backend, agent=agent, namespace=namespace, scopes=check_scopes(scopes), seconds=seconds
    )
    return text


def tool_call(tool: str, **arguments: Any) -> dict[str, Any]:
    """Build the request that calls a tool."""
    return {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


async def post(server: Server, token: str | None, body: Any = INITIALIZE, **headers: str) -> httpx2.Response:
    """Post one request, with a token if given."""
    authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=ACCEPT | authorization | headers) as client:
        return await client.post(f"{server.url}/mcp", json=body)
