"""Waits that end with the client's connection and token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from mcp.server.mcpserver import Context

from memory_server.engine.request_context import RequestContext

if TYPE_CHECKING:
    from starlette.requests import Request

CHECK_SECONDS = 5.0
"""How often the token of a waiting call is checked."""
T = TypeVar("T")


async def while_connected(ctx: Context[Any, Any], request: RequestContext, work: Awaitable[T]) -> T:
    """Await work, and cancel it when the client disconnects; for older protocols the SDK does not.

    Raises:
        Unauthenticated: the token has ended.
    """
    task, ends = asyncio.ensure_future(work), list[asyncio.Task[None]]()
    if (http := ctx.request_context.request) is not None:
        ends.append(asyncio.create_task(_disconnected(http)))
    try:
        while not task.done():
            await asyncio.wait({task, *ends}, timeout=CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if any(end.done() for end in ends):
                task.cancel()
            elif not task.done():
                await request.check_credential()
            if task.cancelling():
                break
        return await task
    finally:
        for one in (task, *ends):
            one.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
