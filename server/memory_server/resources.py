"""Memories, tasks and agents as MCP resources, for clients that attach them by URI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from memory_core.errors import InvalidArgument, MemoryServiceError, NotFound
from memory_server.identity import caller_of
from memory_server.runtime import Runtime

T = TypeVar("T")


def add_resources(server: MCPServer[Any], runtime: Runtime) -> None:
    """Register the resource template."""

    @server.resource("task://{task_id}", title="A task", mime_type="application/json")
    async def task(task_id: str, ctx: Context[Any, Any]) -> str:
        """Give one task that the caller may see, with its history, as JSON."""
        from memory_server.usecases.tasks import get_task

        service = await runtime.service()
        answer = await _read(lambda: get_task(service, caller_of(ctx, runtime.settings), task_id))
        return answer.model_dump_json()

    @server.resource("agent://{agent_id}", title="An agent", mime_type="application/json")
    async def agent(agent_id: str, ctx: Context[Any, Any]) -> str:
        """Give one registered agent, as JSON."""
        from memory_server.usecases.agents import get_agent

        service = await runtime.service()
        answer = await _read(lambda: get_agent(service, caller_of(ctx, runtime.settings), agent_id))
        return answer.agent.model_dump_json()

    @server.resource("memory://{memory_id}", title="A memory", mime_type="application/json")
    async def memory(memory_id: str, ctx: Context[Any, Any]) -> str:
        """Give one memory that the caller may read, as JSON."""
        from memory_server.usecases.read import retrieve_memory

        service = await runtime.service()
        answer = await _read(lambda: retrieve_memory(service, caller_of(ctx, runtime.settings), memory_id))
        return answer.memory.model_dump_json()


async def _read(answer: Callable[[], Awaitable[T]]) -> T:
    """Give an answer, or its refusal as the protocol has it."""
    try:
        return await answer()
    except (NotFound, InvalidArgument) as error:
        raise ResourceNotFoundError(error.message) from error
    except MemoryServiceError as error:
        raise ResourceError(f"{error.code}: {error.message}") from error
