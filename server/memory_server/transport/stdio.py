"""Serves one client over stdin and stdout; logs go to stderr."""

from __future__ import annotations

from typing import Any

from mcp.server.context import CallNext, ServerRequestContext

from memory_core.settings import Settings
from memory_server.app import build_server
from memory_server.runtime import Runtime

_PATIENCE_SECONDS = 1.0
"""How long the first request may take to come before the rest of the server is started anyway."""


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
        await server.run_stdio_async()
