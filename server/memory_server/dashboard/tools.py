"""The tools of the dashboard beyond those of agents: gated, strict and audited in the same way."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from memory_server.contract.arguments import NoArguments
from memory_server.contract.dashboard import (
    AuditAnswer,
    AuditArguments,
    AuditCheckAnswer,
    BoardAnswer,
    CensusAnswer,
    GrantsAnswer,
    MapAnswer,
    MapArguments,
    SnippetArguments,
    SnippetsAnswer,
)
from memory_server.engine.request import RequestContext
from memory_server.mcp.tools.toolkit import StrictTool, make_tool
from memory_server.runtime import Runtime

if TYPE_CHECKING:
    from memory_server.operations.audit_reader import Checks
    from memory_server.operations.stats.overview_stats import Census
    from memory_server.search.projection import Maps


class _Kept:
    """Results kept between calls. Use cases are imported when first called (see `runtime`)."""

    @cached_property
    def census(self) -> Census:
        """Figures counted lately."""
        from memory_server.operations.stats.overview_stats import Census

        return Census()

    @cached_property
    def maps(self) -> Maps:
        """Layouts made lately."""
        from memory_server.search.projection import Maps

        return Maps()

    @cached_property
    def checks(self) -> Checks:
        """Checks of audits under way."""
        from memory_server.operations.audit_reader import Checks

        return Checks()


def dashboard_tools(runtime: Runtime) -> dict[str, StrictTool]:
    """Make the tools over one runtime; none of them is shown to agents."""
    kept = _Kept()

    async def dashboard_census(request: RequestContext, args: NoArguments) -> CensusAnswer:
        """Count what the caller may read, or for an operator all of the namespace."""
        return await kept.census.take(await runtime.service(), request)

    async def dashboard_tasks(request: RequestContext, args: NoArguments) -> BoardAnswer:
        """Show tasks: the caller's own, or for an operator those of all."""
        from memory_server.operations import admin_view

        return await admin_view.task_board((await runtime.service()).backend, request.caller)

    async def dashboard_grants(request: RequestContext, args: NoArguments) -> GrantsAnswer:
        """Show grants and offers: the caller's own, or for an operator those of all."""
        from memory_server.operations import admin_view

        return await admin_view.grant_board(await runtime.service(), request)

    async def dashboard_map(request: RequestContext, args: MapArguments) -> MapAnswer:
        """Lay the caller's readable memories out on a plane."""
        return await kept.maps.draw(await runtime.service(), request, args)

    async def dashboard_snippets(request: RequestContext, args: SnippetArguments) -> SnippetsAnswer:
        """Show the beginnings of some memories."""
        from memory_server.search import projection

        return await projection.snippets(await runtime.service(), request, args.memory_ids)

    async def dashboard_audit(request: RequestContext, args: AuditArguments) -> AuditAnswer:
        """Read the audit; for operators."""
        from memory_server.operations import audit_reader

        return await audit_reader.read_audit(await runtime.service(), request.caller, args)

    async def dashboard_audit_check(request: RequestContext, args: NoArguments) -> AuditCheckAnswer:
        """Check the whole audit; for operators."""
        return await kept.checks.check(await runtime.service(), request.caller)

    tools = [
        make_tool(dashboard_census, NoArguments, read_only=True),
        make_tool(dashboard_tasks, NoArguments, read_only=True),
        make_tool(dashboard_grants, NoArguments, read_only=True),
        make_tool(dashboard_map, MapArguments, read_only=True),
        make_tool(dashboard_snippets, SnippetArguments, read_only=True),
        make_tool(dashboard_audit, AuditArguments, read_only=True, scope="admin"),
        make_tool(dashboard_audit_check, NoArguments, read_only=True, scope="admin"),
    ]
    return {tool.name: tool.guarded(runtime.gate) for tool in tools}
