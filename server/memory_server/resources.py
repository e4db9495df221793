"""Memories as MCP resources, for clients that attach them by URI."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from memory_core.errors import InvalidArgument, MemoryServiceError, NotFound
from memory_server.identity import caller_of
from memory_server.runtime import Runtime


def add_resources(server: MCPServer[Any], runtime: Runtime) -> None:
    """Register the resource template."""

    @server.resource("memory://{memory_id}", title="A memory", mime_type="application/json")
    async def memory(memory_id: str, ctx: Context[Any, Any]) -> str:
        """Give one memory that the caller may read, as JSON."""
        from memory_server.usecases.read import retrieve_memory

        try:
            caller = caller_of(ctx, runtime.settings)
            answer = await retrieve_memory(await runtime.service(), caller, memory_id)
        except (NotFound, InvalidArgument) as error:
            raise ResourceNotFoundError(error.message) from error
        except MemoryServiceError as error:
            raise ResourceError(f"{error.code}: {error.message}") from error
        return answer.memory.model_dump_json()
