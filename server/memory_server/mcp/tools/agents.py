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
        """Say who you are and what you can do, so that work reaches you. A second call changes only what you give."""
        return await lazy.registry.register_agent(await runtime.service(), request.acting_as(args.agent_id), args)

    async def unregister_agent(request: RequestContext, args: arguments_of.UnregisterArguments) -> UnregisterAnswer:
        """Leave for good: your tasks go to others, those only for you end, your grants end, and you lose your memories.

        They are kept for an operator, offered to another agent, or deleted.
        """
        return await lazy.registry.unregister_agent(await runtime.service(), request.acting_as(args.agent_id), args)

    async def update_agent_heartbeat(request: RequestContext, args: arguments_of.HeartbeatArguments) -> HeartbeatAnswer:
        """Report that you are alive and renew your leases. The answer lists lost leases and what waits for you."""
        return await lazy.registry.heartbeat(await runtime.service(), request.acting_as(args.agent_id), args)

    async def list_agents(request: RequestContext, args: arguments_of.ListAgentsArguments) -> AgentListAnswer:
        """List agents: registered, alive, able and free."""
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
