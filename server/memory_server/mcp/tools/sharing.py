"""The tools that share memories between agents."""

from __future__ import annotations

from memory_core.records.authority import Effect
from memory_server.contract import sharing as arguments_of
from memory_server.contract.sharing import OfferAnswer, RevokeAnswer, ShareAnswer, SharedContextAnswer
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime


def context_tools(runtime: Runtime) -> list[StrictTool]:
    async def share_context_with_agent(request: RequestContext, args: arguments_of.ShareArguments) -> ShareAnswer:
        """Let another agent read your memories, private and later ones too, by ids, context, tags or types."""
        return await lazy.grants.share_context(await runtime.service(), request, args)

    async def get_shared_context(
        request: RequestContext, args: arguments_of.SharedContextArguments
    ) -> SharedContextAnswer:
        """See what others share with you, or its changes since a cursor, and all grants and offers that concern you."""
        return await lazy.shared_context.get_shared_context(await runtime.service(), request, args)

    async def revoke_shared_context(request: RequestContext, args: arguments_of.RevokeArguments) -> RevokeAnswer:
        """End a grant or an offer at once, given by you or to you."""
        return await lazy.grants.revoke_shared(await runtime.service(), request, args.grant_id)

    async def answer_offer(request: RequestContext, args: arguments_of.OfferArguments) -> OfferAnswer:
        """Accept or decline an offer. Accepting shares YOUR memories back with its sender, or makes the memories of an
        agent that left yours: read if_accepted first."""
        return await lazy.offers.answer_offer(await runtime.service(), request, args)

    return [
        make_tool(share_context_with_agent, arguments_of.ShareArguments, effects=[Effect.SHARE_MEMORIES]),
        make_tool(
            get_shared_context,
            arguments_of.SharedContextArguments,
            effects=[Effect.SEE_OWN, Effect.READ_MEMORIES],
            read_only=True,
        ),
        make_tool(revoke_shared_context, arguments_of.RevokeArguments, effects=[Effect.END_GRANTS], destructive=True),
        make_tool(
            answer_offer,
            arguments_of.OfferArguments,
            effects=[Effect.END_GRANTS],
            effects_of=lambda args: [Effect.SHARE_MEMORIES, Effect.MOVE_MEMORIES] if args.accept else [],
        ),
    ]
