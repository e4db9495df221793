"""The tools that store, read and change memories."""

from __future__ import annotations

from memory_core.records.authority import Effect
from memory_server.contract import arguments as arguments_of
from memory_server.contract.memories import MemoryAnswer, MemoryListAnswer, StoreAnswer, UpdateAnswer
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.clear import clear_tool
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime


def memory_tools(runtime: Runtime) -> list[StrictTool]:
    async def store_memory(request: RequestContext, args: arguments_of.StoreArguments) -> StoreAnswer:
        """Remember a fact, decision, preference or result for later: one per memory, clear without other context."""
        return await lazy.store.store_memory(await runtime.service(), request.acting_as(args.agent_id), args)

    async def retrieve_memory(request: RequestContext, args: arguments_of.RetrieveArguments) -> MemoryAnswer:
        """Read one memory by the id in a search result; a long one page by page."""
        return await lazy.get.retrieve_memory(await runtime.service(), request, args)

    async def get_agent_memories(request: RequestContext, args: arguments_of.ListArguments) -> MemoryListAnswer:
        """List memories, newest first: yours, or those of agent_id that you may read. Filters as in semantic_search."""
        return await lazy.get.list_memories(await runtime.service(), request, args)

    async def update_memory(request: RequestContext, args: arguments_of.UpdateArguments) -> UpdateAnswer:
        """Correct or change a memory instead of storing it again; omitted fields stay."""
        return await lazy.update.update_memory(await runtime.service(), request, args)

    store = make_tool(store_memory, arguments_of.StoreArguments, effects=[Effect.WRITE_MEMORIES])
    if not runtime.settings.has_master_key:
        offered = {name: part for name, part in store.parameters["properties"].items() if name != "sensitive"}
        store.parameters = {**store.parameters, "properties": offered}
    return [
        store,
        make_tool(retrieve_memory, arguments_of.RetrieveArguments, effects=[Effect.READ_MEMORIES], read_only=True),
        make_tool(get_agent_memories, arguments_of.ListArguments, effects=[Effect.READ_MEMORIES], read_only=True),
        clear_tool(runtime),
        make_tool(update_memory, arguments_of.UpdateArguments, effects=[Effect.WRITE_MEMORIES]),
    ]
