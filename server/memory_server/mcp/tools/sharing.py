"""The tools that share memories between agents."""

from __future__ import annotations

from memory_server.contract import sharing as arguments_of
from memory_server.contract.sharing import RevokeAnswer, ShareAnswer, SharedContextAnswer
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime


def context_tools(runtime: Runtime) -> list[StrictTool]:
    async def share_context_with_agent(request: RequestContext, args: arguments_of.ShareArguments) -> ShareAnswer:
        """Let another agent see memories of yours, private ones included, by ids, context, tags or types.

        It covers what you store later too. Sharing the same again replaces permission and end.
        """
        return await lazy.grants.share_context(await runtime.service(), request, args)

    async def get_shared_context(
        request: RequestContext, args: arguments_of.SharedContextArguments
    ) -> SharedContextAnswer:
        """List memories shared with you, or their changes since a cursor, and all grants and offers."""
        return await lazy.shared_context.get_shared_context(await runtime.service(), request, args)

    async def revoke_shared_context(request: RequestContext, args: arguments_of.RevokeArguments) -> RevokeAnswer:
        """End a grant that you gave, or an offer, immediately."""
        return await lazy.grants.revoke_shared(await runtime.service(), request, args.grant_id)

    return [
        make_tool(share_context_with_agent, arguments_of.ShareArguments),
        make_tool(get_shared_context, arguments_of.SharedContextArguments, read_only=True),
        make_tool(revoke_shared_context, arguments_of.RevokeArguments, destructive=True),
    ]
