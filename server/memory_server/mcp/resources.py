"""Memories, tasks and agents as MCP resources, for clients that attach them by URI."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from pydantic import ValidationError

from memory_core.errors import InvalidArgument, MemoryServiceError, NotFound, plain_line
from memory_core.records.authority import Effect
from memory_core.records.names import canonical_name
from memory_server.contract.answer import Answer
from memory_server.contract.arguments import RetrieveArguments
from memory_server.contract.memories import MemoryAnswer
from memory_server.engine.audited_calls import named_ids
from memory_server.mcp import lazy
from memory_server.runtime import Runtime

if TYPE_CHECKING:
    from memory_server.engine.request_context import RequestContext
    from memory_server.service import Service

Ctx = Context[Any, Any]
JSON = "application/json"
T = TypeVar("T", bound=Answer)
EFFECTS: dict[str, Effect] = {"task": Effect.SEE_TASKS, "agent": Effect.SEE_TEAM, "memory": Effect.READ_MEMORIES}
"""What reading a resource does, by the scheme of its URI."""


def add_resources(server: MCPServer[Any], runtime: Runtime) -> None:
    """Register the resource templates."""

    async def read(ctx: Ctx, scheme: str, some_id: str, get: Callable[[Service, RequestContext], Awaitable[T]]) -> T:
        named, effects = named_ids({"memory_id": some_id}), [EFFECTS[scheme]]
        try:
            async with runtime.gate.call(ctx.request_context, "read_resource", named, effects) as request:
                answer = await get(await runtime.service(), request)
                request.call.succeeded(answer.shown())
                return answer
        except (NotFound, InvalidArgument) as error:
            raise ResourceNotFoundError(error.message) from error
        except MemoryServiceError as error:
            raise ResourceError(f"{error.code}: {error.message}") from error

    @server.resource("task://{task_id}", title="A task", mime_type="application/json")
    async def task(task_id: str, ctx: Ctx) -> str:
        """Give one task that the caller may see, with its history, as JSON."""
        answer = await read(
            ctx, "task", task_id, lambda service, request: lazy.lifecycle.get_task(service, request.caller, task_id)
        )
        return plain_line(answer.model_dump_json())

    @server.resource("agent://{agent_id}", title="An agent", mime_type="application/json")
    async def agent(agent_id: str, ctx: Ctx) -> str:
        """Give one registered agent, as JSON."""
        answer = await read(
            ctx,
            "agent",
            agent_id,
            lambda service, request: lazy.registry.get_agent(
                service.backend, request.caller, canonical_name(agent_id) if request.access is None else agent_id
            ),
        )
        return plain_line(answer.agent.model_dump_json())

    @server.resource("memory://{memory_id}{?rev,chunk,max_tokens,cursor}", title="A memory", mime_type=JSON)
    async def memory(
        memory_id: str, ctx: Ctx, rev: str = "", chunk: str = "", max_tokens: str = "", cursor: str = ""
    ) -> str:
        """Give one memory that the caller may read, as JSON; a long one page by page, or all with max_tokens=0."""
        given = {"rev": rev, "chunk": chunk, "max_tokens": max_tokens, "cursor": cursor}

        async def get(service: Service, request: RequestContext) -> MemoryAnswer:
            try:
                args = RetrieveArguments.model_validate({"memory_id": memory_id, **given})
            except ValidationError:
                raise InvalidArgument("rev, chunk and max_tokens are whole numbers") from None
            return await lazy.get.retrieve_memory(service, request, args)

        answer = await read(ctx, "memory", memory_id, get)
        page = answer.model_dump(mode="json", include={"chunks", "next_cursor"}, exclude_none=True)
        return plain_line(json.dumps(answer.memory.model_dump(mode="json") | page, ensure_ascii=False))
