"""Shortens and escapes the errors in which the SDK echoes a caller's words: unknown tools, prompts and resources."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.shared.exceptions import MCPError

from memory_core.errors import ECHO_LIMIT, NotFound, echo, plain_line
from memory_server.mcp.tools.tool_factory import refusal

_MOST = 500


def plain_errors(tools: Collection[str]) -> ServerMiddleware[Any]:
    """Make the middleware of a server with these tools."""

    async def middleware(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        params = ctx.params or {}
        name = params.get("name")
        try:
            result = await call_next(ctx)
            is_refused = isinstance(result, dict) and result.get("isError", False)
            if ctx.method == "tools/call" and name not in tools and is_refused:
                return refusal(NotFound(f"no tool {echo(str(name))}", hint="tools/list names them all"))
            return result
        except MCPError as error:
            message, data = error.error.message, error.error.data
            for said in (name, params.get("uri")):
                if isinstance(said, str) and len(said) > ECHO_LIMIT:
                    message = message.replace(said, f"{said[:ECHO_LIMIT]}…")
            if isinstance(data, dict) and isinstance(uri := data.get("uri"), str):
                data = {**data, "uri": plain_line(uri[:ECHO_LIMIT])}
            raise MCPError(error.error.code, plain_line(message[:_MOST]), data) from error

    return middleware
