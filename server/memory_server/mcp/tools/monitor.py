"""The tools that show the state of memories and GPUs."""

from __future__ import annotations

from memory_core.records.authority import Effect
from memory_server.contract import arguments as arguments_of
from memory_server.contract.stats import GpuAnswer, StatsAnswer
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime


def monitor_tools(runtime: Runtime) -> list[StrictTool]:
    async def memory_stats(request: RequestContext, args: arguments_of.StatsArguments) -> StatsAnswer:
        """Count memories, and show the state of index, searches, tasks and agents, if something is slow or missing."""
        return await lazy.memory_stats.memory_stats(await runtime.service(), request, args)

    async def gpu_status(request: RequestContext, args: arguments_of.NoArguments) -> GpuAnswer:
        """Show each embedding sidecar, if vectors are slow: device, model, load, queue and CPU fallbacks."""
        return await lazy.memory_stats.gpu_status(await runtime.service(), request.caller)

    return [
        make_tool(memory_stats, arguments_of.StatsArguments, effects=[Effect.SEE_TEAM], read_only=True),
        make_tool(gpu_status, arguments_of.NoArguments, effects=[Effect.SEE_TEAM], read_only=True),
    ]
