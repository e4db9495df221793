"""The tool that waits for events."""

from __future__ import annotations

import asyncio
from typing import Any

from mcp.server.mcpserver import Context

from memory_core.errors import QuotaExceeded
from memory_core.records.authority import Effect
from memory_server.contract import arguments as arguments_of
from memory_server.contract.events import EventsAnswer
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.client_waits import while_connected
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime

Ctx = Context[Any, Any]
_REFUSAL_SECONDS = 1.0


def event_tools(runtime: Runtime) -> list[StrictTool]:
    async def wait_for_events(ctx: Ctx, request: RequestContext, args: arguments_of.WaitArguments) -> EventsAnswer:
        """Wait for what concerns you: tasks, grants, agents, memories, matches of query. Goes on where you ended."""
        wait = lazy.waiting.wait_for_events(await runtime.service(), request, args)
        try:
            return await while_connected(ctx, request, wait)
        except QuotaExceeded:
            if not request.is_in_batch:
                async with request.waiting():  # slows down a client that tries again immediately
                    await asyncio.sleep(min(_REFUSAL_SECONDS, args.timeout_seconds))
            raise

    effects = [Effect.SEE_OWN, Effect.READ_MEMORIES]
    return [make_tool(wait_for_events, arguments_of.WaitArguments, effects=effects, read_only=True)]
