"""Builds the MCP server, which all transports share."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.subscriptions import InMemorySubscriptionBus

from memory_server.access.gate import sdk_auth
from memory_server.mcp.choices import ChosenAnswers
from memory_server.mcp.listing import INSTRUCTIONS
from memory_server.mcp.metering import Metering
from memory_server.mcp.plain_errors import plain_errors
from memory_server.mcp.prompts import add_prompts, without_blank_arguments
from memory_server.mcp.resources import add_resources
from memory_server.mcp.subscriptions import add_subscriptions
from memory_server.mcp.tools.agents import agent_tools
from memory_server.mcp.tools.batch import batch_tool
from memory_server.mcp.tools.events import event_tools
from memory_server.mcp.tools.memories import memory_tools
from memory_server.mcp.tools.monitor import monitor_tools
from memory_server.mcp.tools.search import search_tools
from memory_server.mcp.tools.sharing import context_tools
from memory_server.mcp.tools.tasks import task_tools
from memory_server.mcp.tools.tool_factory import StrictTool
from memory_server.runtime import Runtime

NAME = "redis-memory-gpu"


def tool_groups(runtime: Runtime) -> dict[str, list[StrictTool]]:
    """Make all tools over a runtime, by group."""
    groups = {
        "Memories": memory_tools(runtime),
        "Search": search_tools(runtime),
        "Tasks": task_tools(runtime),
        "Agents": agent_tools(runtime),
        "Shared context": context_tools(runtime),
        "Monitoring": monitor_tools(runtime),
    }
    tools = [tool for group in groups.values() for tool in group]
    return {**groups, "Events and batches": [*event_tools(runtime), batch_tool(runtime, tools)]}


def build_server(runtime: Runtime) -> MCPServer[Any]:
    """Make the server over a runtime. It can list its tools before Redis or a model is ready."""
    everything = [tool for tools in tool_groups(runtime).values() for tool in tools]
    names = {tool.name for tool in everything}
    bus = InMemorySubscriptionBus()
    server: MCPServer[Any] = MCPServer(
        NAME,
        title="Redis memory",
        version=version("redis-memory-gpu"),
        instructions=INSTRUCTIONS[runtime.settings.tools],
        tools=[tool.guarded(runtime.gate) for tool in everything],
        log_level="WARNING",
        subscriptions=bus,
        middleware=[
            Metering(runtime.gate, names),
            ChosenAnswers(runtime.settings),
            plain_errors(names),
            without_blank_arguments,
        ],
        **sdk_auth(runtime.gate, runtime.settings),
    )
    add_prompts(server)
    add_resources(server, runtime)
    add_subscriptions(server, runtime, bus)
    return server
