"""The tool that waits for events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from mcp.server.mcpserver import Context

from memory_server.contract import arguments as arguments_of
from memory_server.contract.events import EventsAnswer
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime

if TYPE_CHECKING:
    from starlette.requests import Request

Ctx = Context[Any, Any]
T = TypeVar("T")


def event_tools(runtime: Runtime) -> list[StrictTool]:
    async def wait_for_events(ctx: Ctx, request: RequestContext, args: arguments_of.WaitArguments) -> EventsAnswer:
        """Wait until something happens that concerns you: a task, grant, agent or memory, or a match of your query.

        Call it again with the returned cursor to miss nothing.
        """
        wait = lazy.waiting.wait_for_events(await runtime.service(), request, args)
        return await while_connected(ctx.request_context.request, wait)

    return [make_tool(wait_for_events, arguments_of.WaitArguments, read_only=True)]


async def while_connected(request: Request | None, work: Awaitable[T]) -> T:
    """Await work, and cancel it when the client disconnects; for older protocols the SDK does not."""
    if request is None:
        return await work
    task, gone = asyncio.ensure_future(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return await task
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
