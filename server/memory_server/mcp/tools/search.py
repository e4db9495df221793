"""The tools that find memories."""

from __future__ import annotations

from memory_core.records.authority import Effect
from memory_server.contract import arguments as arguments_of
from memory_server.contract.memories import SearchAnswer
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime


def search_tools(runtime: Runtime) -> list[StrictTool]:
    async def semantic_search(request: RequestContext, args: arguments_of.SearchArguments) -> SearchAnswer:
        """Find memories by meaning and words, best first. Use it before a task and before answering from memory."""
        return await lazy.search.semantic_search(await runtime.service(), request, args)

    async def find_similar_memories(request: RequestContext, args: arguments_of.SimilarArguments) -> SearchAnswer:
        """Find memories closest in meaning to one that you have, such as duplicates. Filters as in semantic_search."""
        return await lazy.search.find_similar(await runtime.service(), request, args)

    return [
        make_tool(semantic_search, arguments_of.SearchArguments, effects=[Effect.READ_MEMORIES], read_only=True),
        make_tool(find_similar_memories, arguments_of.SimilarArguments, effects=[Effect.READ_MEMORIES], read_only=True),
    ]
