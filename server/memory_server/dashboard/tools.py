"""The tools that only the dashboard uses. They are gated, strict and audited like those of agents."""

from __future__ import annotations

from functools import cache

from memory_core.records.authority import Effect
from memory_server.contract import dashboard as answers
from memory_server.contract.arguments import NoArguments
from memory_server.contract.dashboard import AuditArguments, MapArguments, SnippetArguments
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime


def dashboard_tools(runtime: Runtime) -> dict[str, StrictTool]:
    """Make the tools over one runtime; agents do not see them."""
    # Each of these caches its results between calls.
    census = cache(lambda: lazy.overview_stats.Census())
    maps = cache(lambda: lazy.projection.Maps())
    checks = cache(lambda: lazy.audit_reader.Checks())

    async def dashboard_census(request: RequestContext, args: NoArguments) -> answers.CensusAnswer:
        """Count the memories that the caller may read; for an operator, all of the namespace."""
        return await census().take(await runtime.service(), request)

    async def dashboard_tasks(request: RequestContext, args: NoArguments) -> answers.BoardAnswer:
        """List the caller's tasks; for an operator, all tasks."""
        return await lazy.admin_view.task_board((await runtime.service()).backend, request.caller)

    async def dashboard_grants(request: RequestContext, args: NoArguments) -> answers.GrantsAnswer:
        """List the caller's grants and offers; for an operator, all of them."""
        return await lazy.admin_view.grant_board(await runtime.service(), request)

    async def dashboard_map(request: RequestContext, args: MapArguments) -> answers.MapAnswer:
        """Lay the caller's readable memories out on a plane."""
        return await maps().draw(await runtime.service(), request, args)

    async def dashboard_snippets(request: RequestContext, args: SnippetArguments) -> answers.SnippetsAnswer:
        """Return the first words of some memories."""
        return await lazy.projection.snippets(await runtime.service(), request, args.memory_ids)

    async def dashboard_audit(request: RequestContext, args: AuditArguments) -> answers.AuditAnswer:
        """Read the audit; operators only."""
        return await lazy.audit_reader.read_audit(await runtime.service(), request.caller, args)

    async def dashboard_audit_check(request: RequestContext, args: NoArguments) -> answers.AuditCheckAnswer:
        """Verify the whole audit; operators only."""
        return await checks().check(await runtime.service(), request.caller)

    tools = [
        make_tool(dashboard_census, NoArguments, effects=[Effect.SEE_TEAM], read_only=True),
        make_tool(dashboard_tasks, NoArguments, effects=[Effect.SEE_TASKS], read_only=True),
        make_tool(dashboard_grants, NoArguments, effects=[Effect.SEE_GRANTS], read_only=True),
        make_tool(dashboard_map, MapArguments, effects=[Effect.READ_MEMORIES], read_only=True),
        make_tool(dashboard_snippets, SnippetArguments, effects=[Effect.READ_MEMORIES], read_only=True),
        make_tool(dashboard_audit, AuditArguments, effects=[Effect.SEE_AUDIT], read_only=True),
        make_tool(dashboard_audit_check, NoArguments, effects=[Effect.SEE_AUDIT], read_only=True),
    ]
    return {tool.name: tool.guarded(runtime.gate) for tool in tools}
