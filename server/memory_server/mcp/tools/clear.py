"""The tool that removes memories, after asking the person where more than one would go.

Annotations are evaluated here, not kept as text: the SDK must find the resolver, which is a local function.
"""

from typing import Annotated, Any

from mcp.server.mcpserver import Context, Elicit, ElicitationResult, Resolve
from pydantic import BaseModel, Field

from memory_server.contract import arguments as arguments_of
from memory_server.contract.memories import ClearAnswer
from memory_server.engine.request import RequestContext
from memory_server.mcp.tools.toolkit import StrictTool, make_tool
from memory_server.runtime import Runtime

Ctx = Context[Any, Any]


class Confirmation(BaseModel):
    """What the person is asked before memories are deleted."""

    delete: bool = Field(description="Delete them for good?")


def clear_tool(runtime: Runtime) -> StrictTool:
    """Make the tool over one runtime."""

    async def selected(request: RequestContext, args: arguments_of.ClearArguments) -> Any:
        """Find what would go, once for the question and the deed."""
        from memory_server.memories import clear

        return await clear.select(await runtime.service(), request, args)

    async def confirmation(
        ctx: Ctx, args: arguments_of.ClearArguments, plan: Annotated[Any, Resolve(selected)]
    ) -> Confirmation | Elicit[Confirmation]:
        """Ask the person where that is needed and possible."""
        if args.confirm or args.dry_run or plan.matched <= 1 or not _can_ask(ctx):
            return Confirmation(delete=args.confirm)
        return Elicit(f"Delete {plan.matched} memories for good?", Confirmation)

    async def clear_memory(
        request: RequestContext,
        args: arguments_of.ClearArguments,
        plan: Annotated[Any, Resolve(selected)],
        asked: Annotated[ElicitationResult[Confirmation], Resolve(confirmation)],
    ) -> ClearAnswer:
        """Delete memories of your own for good, by id or by filter. More than one needs confirmation."""
        from memory_server.memories import clear

        confirmed = asked.action == "accept" and asked.data.delete
        return await clear.clear_memory(await runtime.service(), plan, confirmed=confirmed, dry_run=args.dry_run)

    return make_tool(clear_memory, arguments_of.ClearArguments, destructive=True)


def _can_ask(ctx: Ctx) -> bool:
    capabilities = ctx.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)
