"""The tools that show the state of the memory and the GPUs."""

from __future__ import annotations

from memory_server.contract import arguments as arguments_of
from memory_server.contract.stats import GpuAnswer, StatsAnswer
from memory_server.engine.request import RequestContext
from memory_server.mcp.tools.toolkit import StrictTool, make_tool
from memory_server.runtime import Runtime


def monitor_tools(runtime: Runtime) -> list[StrictTool]:
    """Make the tools over one runtime."""

    async def memory_stats(request: RequestContext, args: arguments_of.StatsArguments) -> StatsAnswer:
        """Count the memories that you may read, and tell how index, vectors and searches are doing."""
        from memory_server.operations.stats import memory_stats as stats

        return await stats.memory_stats(await runtime.service(), request, args)

    async def gpu_status(request: RequestContext, args: arguments_of.NoArguments) -> GpuAnswer:
        """Show each embedding sidecar: device, model, memory, throughput, queue, and what fell back to the CPU."""
        from memory_server.operations.stats import memory_stats as stats

        return await stats.gpu_status(await runtime.service(), request.caller)

    return [
        make_tool(memory_stats, arguments_of.StatsArguments, read_only=True),
        make_tool(gpu_status, arguments_of.NoArguments, read_only=True),
    ]
