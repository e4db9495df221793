"""The tools that register agents, take heartbeats and list agents."""

from __future__ import annotations

from memory_core.records.authority import Effect
from memory_server.contract import task_arguments as arguments_of
from memory_server.contract.agents import AgentListAnswer, HeartbeatAnswer, RegisterAnswer, UnregisterAnswer
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime

_FATES: dict[str, tuple[Effect, ...]] = {
    "keep": (),
    "transfer": (Effect.MOVE_MEMORIES,),
    "delete": (Effect.DELETE_MEMORIES,),
}
"""The effect of each `memories` argument."""


def agent_tools(runtime: Runtime) -> list[StrictTool]:
    async def register_agent(request: RequestContext, args: arguments_of.RegisterArguments) -> RegisterAnswer:
        """Join the team, once per session: say what you can do, so that tasks and shared context reach you.

        What you omit keeps its value.
        """
        return await lazy.registry.register_agent(await runtime.service(), request.acting_as(args.agent_id), args)

    async def unregister_agent(request: RequestContext, args: arguments_of.UnregisterArguments) -> UnregisterAnswer:
        """Leave forever: your tasks go to others, your grants end, and you lose your memories."""
        return await lazy.registry.unregister_agent(await runtime.service(), request.acting_as(args.agent_id), args)

    async def update_agent_heartbeat(request: RequestContext, args: arguments_of.HeartbeatArguments) -> HeartbeatAnswer:
        """Report progress and renew your leases during long silent work."""
        return await lazy.registry.heartbeat(await runtime.service(), request.acting_as(args.agent_id), args)

    async def list_agents(request: RequestContext, args: arguments_of.ListAgentsArguments) -> AgentListAnswer:
        """List agents with skills and load, to see who can take work."""
        return await lazy.registry.list_agents(await runtime.service(), request.caller, args)

    return [
        make_tool(register_agent, arguments_of.RegisterArguments, effects=[Effect.REGISTER]),
        make_tool(
            unregister_agent,
            arguments_of.UnregisterArguments,
            effects=[Effect.REGISTER, Effect.END_GRANTS],
            effects_of=lambda args: _FATES[args.memories],
            destructive=True,
        ),
        make_tool(update_agent_heartbeat, arguments_of.HeartbeatArguments, effects=[Effect.REGISTER]),
        make_tool(list_agents, arguments_of.ListAgentsArguments, effects=[Effect.SEE_TEAM], read_only=True),
    ]
