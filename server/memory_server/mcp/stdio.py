"""Serves one client over stdin and stdout; logs go to stderr."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from mcp.server.context import CallNext, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.server.stdio import stdio_server

from memory_core.settings.settings import Settings
from memory_server.mcp.server import build_server
from memory_server.mcp.stdio_lines import Lines, claim_stdin
from memory_server.runtime import Runtime

_PATIENCE_SECONDS = 1.0
"""If no request comes within this time, the rest of the server starts anyway."""


async def serve_stdio(settings: Settings) -> None:
    """Serve until the client closes stdin."""
    runtime = Runtime(settings)
    server = build_server(runtime)

    async def notice_first_answer(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> Any:
        result = await call_next(ctx)
        runtime.answered()
        return result

    server.middleware.append(notice_first_answer)
    async with runtime.running(patience=_PATIENCE_SECONDS):
        checking = asyncio.create_task(_check_token(runtime))
        try:
            await _run(server, Lines(claim_stdin(), settings.limits.body_bytes))
        finally:
            checking.cancel()


async def _run(server: MCPServer[Any], lines: Lines) -> None:
    """Run as the SDK's `run_stdio_async`, with a stricter reader."""
    low = server._lowlevel_server  # pyright: ignore[reportPrivateUsage] - the SDK has no public way to change the reader
    async with stdio_server(stdin=cast(Any, lines)) as (read, write):
        lines.answer = write.send
        await low.run(read, write, low.create_initialization_options())


async def _check_token(runtime: Runtime) -> None:
    """Warn at start if the token is not valid: every call will be refused."""
    if runtime.settings.token is not None:
        await runtime.until_first_answer()
        await runtime.gate.warn_of_bad_token()
