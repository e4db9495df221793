"""Limits the rate of all MCP messages other than tool calls, which the gate limits. Resource reads have both limits.

How many run at a time is limited before they are parsed, see `http/agent_limits.py`; on stdio there is one client.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import mcp_types as types
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError

from memory_core.errors import InvalidArgument, MemoryServiceError, RateLimited
from memory_server.access import identity
from memory_server.access.gate import Gate


class Metering:
    """Middleware of the SDK's server. Calls of known tools pass, because the gate meters them."""

    def __init__(self, gate: Gate, tools: Collection[str]) -> None:
        self._gate, self._tools = gate, frozenset(tools)

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.request is not None and identity.REPEATED in ctx.request.scope:
            return await call_next(ctx)
        name = (ctx.params or {}).get("name")
        if ctx.method == "tools/call" and isinstance(name, str) and name in self._tools:
            return await call_next(ctx)
        try:
            self._gate.take_message(ctx)
        except RateLimited as error:
            if ctx.request_id is None:
                return None  # a notification has no answer
            raise protocol_error(error) from error
        return await call_next(ctx)


def protocol_error(error: MemoryServiceError) -> MCPError:
    """Return an error for methods whose answers have no place for a typed error."""
    code = types.INVALID_PARAMS if isinstance(error, InvalidArgument) else types.INTERNAL_ERROR
    return MCPError(code, f"{error.code}: {error.message}", error.details())
