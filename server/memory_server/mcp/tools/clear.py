"""The tool that deletes memories. It asks the person first if there is more than one.

Annotations are evaluated here, not kept as text: the SDK must find the resolver, which is a local function.
"""

from typing import Annotated, Any

from mcp.server.mcpserver import Context, Elicit, ElicitationResult, Resolve
from pydantic import BaseModel, Field

from memory_core.records.authority import Effect
from memory_server.contract import arguments as arguments_of
from memory_server.contract.memories import ClearAnswer
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime

Ctx = Context[Any, Any]


class Confirmation(BaseModel):
    """The question to the person before memories are deleted."""

    delete: bool = Field(description="Delete them permanently?")


def clear_tool(runtime: Runtime) -> StrictTool:
    async def selected(request: RequestContext, args: arguments_of.ClearArguments) -> Any:
        """Find what to delete, once for both the question and the deletion."""
        return await lazy.clear.select(await runtime.service(), request, args)

    async def confirmation(
        ctx: Ctx, args: arguments_of.ClearArguments, plan: Annotated[Any, Resolve(selected)]
    ) -> Confirmation | Elicit[Confirmation]:
        """Ask the person if that is needed and possible."""
        if args.confirm or args.dry_run or plan.matched <= 1 or not _can_ask(ctx):
            return Confirmation(delete=args.confirm)
        return Elicit(f"Delete {plan.matched} memories permanently?", Confirmation)

    async def clear_memory(
        request: RequestContext,
        args: arguments_of.ClearArguments,
        plan: Annotated[Any, Resolve(selected)],
        asked: Annotated[ElicitationResult[Confirmation], Resolve(confirmation)],
    ) -> ClearAnswer:
        """Permanently delete your own memories, by id or by filter. More than one needs confirmation."""
        confirmed = asked.action == "accept" and asked.data.delete
        return await lazy.clear.clear_memory(await runtime.service(), plan, confirmed=confirmed, dry_run=args.dry_run)

    return make_tool(clear_memory, arguments_of.ClearArguments, effects=[Effect.DELETE_MEMORIES], destructive=True)


def _can_ask(ctx: Ctx) -> bool:
    capabilities = ctx.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)
