"""The tool that deletes memories. It asks the person first if there is more than one.

Annotations are evaluated here, not kept as text: the SDK must find the resolver, which is a local function.
"""

import asyncio
from typing import Annotated, Any

from mcp.server.mcpserver import Context, Elicit, ElicitationResult, Resolve
from mcp_types.version import is_version_at_least
from pydantic import BaseModel, Field, create_model

from memory_core.errors import ConfirmationNeeded, InvalidArgument
from memory_core.records.authority import Effect
from memory_server.access.questions import Questions
from memory_server.contract import arguments as arguments_of
from memory_server.contract.memories import ClearAnswer
from memory_server.contract.untrusted_text import counted
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.client_waits import while_connected
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime

Ctx = Context[Any, Any]
_ANSWERED_LATER = "2026-07-28"
"""Since this protocol version a client answers by another call, and no call waits."""
_DELETE = "Delete them permanently?"


class Confirmation(BaseModel):
    """The question to the person before memories are deleted."""

    delete: bool = Field(description=_DELETE)


def clear_tool(runtime: Runtime) -> StrictTool:
    questions = runtime.gate.questions

    async def selected(ctx: Ctx, request: RequestContext, args: arguments_of.ClearArguments) -> Any:
        """Find what to delete, once for both the question and the deletion."""
        service = await runtime.service()
        plan = await lazy.clear.select(service, request, args)
        return await lazy.clear.listed(service, plan) if _must_ask(ctx, request, args, plan.matched) else plan

    async def confirmation(
        ctx: Ctx, request: RequestContext, args: arguments_of.ClearArguments, plan: Annotated[Any, Resolve(selected)]
    ) -> Confirmation | Elicit[Confirmation]:
        """Ask the person if that is needed and possible."""
        if not _must_ask(ctx, request, args, plan.matched):
            return Confirmation(delete=args.confirm)
        question = f"Delete {counted(plan.matched, 'memory')} permanently?"
        if _is_answered_later(ctx):
            return Elicit(question, _marked(questions.code(request.caller, plan.subject)))
        return await _answer(ctx, request, question, questions)

    async def clear_memory(
        ctx: Ctx,
        request: RequestContext,
        args: arguments_of.ClearArguments,
        plan: Annotated[Any, Resolve(selected)],
        asked: Annotated[ElicitationResult[Confirmation], Resolve(confirmation)],
    ) -> ClearAnswer:
        """Delete your memories forever, by ids or filters as in semantic_search. To correct one, use update_memory."""
        confirmed = asked.action == "accept" and asked.data.delete
        if _must_ask(ctx, request, args, plan.matched) and _is_answered_later(ctx):
            confirmed = questions.use(request.caller, plan.subject) and confirmed
        return await lazy.clear.clear_memory(await runtime.service(), plan, confirmed=confirmed, dry_run=args.dry_run)

    return make_tool(clear_memory, arguments_of.ClearArguments, effects=[Effect.DELETE_MEMORIES], destructive=True)


def _must_ask(ctx: Ctx, request: RequestContext, args: arguments_of.ClearArguments, matched: int) -> bool:
    """Whether to ask the person. A batch never asks: it needs `confirm: true`."""
    return not (args.confirm or args.dry_run or matched <= 1 or request.is_in_batch) and _can_ask(ctx)


def _can_ask(ctx: Ctx) -> bool:
    capabilities = ctx.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def _is_answered_later(ctx: Ctx) -> bool:
    return is_version_at_least(ctx.protocol_version or "", _ANSWERED_LATER)


def _marked(code: str) -> type[Confirmation]:
    """Return the question with a code. The SDK accepts an answer only to a question that is exactly the same."""
    description = f"{_DELETE} (question {code})"
    return create_model("Confirmation", __base__=Confirmation, delete=(bool, Field(description=description)))


async def _answer(ctx: Ctx, request: RequestContext, question: str, questions: Questions) -> Confirmation:
    """Wait for the person's answer. The wait ends with its deadline, the connection, the session and the token."""
    try:
        with questions.waiting(request.caller):
            async with request.waiting(), asyncio.timeout(questions.seconds):
                asked = await while_connected(ctx, request, ctx.elicit(question, Confirmation))
    except TimeoutError:
        message = f"nobody answered within {questions.seconds:g} s; nothing was deleted"
        raise ConfirmationNeeded(message, hint="call again with confirm: true") from None
    except ValueError:
        raise InvalidArgument("the answer to the question is not valid", hint="send delete: true or false") from None
    return asked.data if asked.action == "accept" else Confirmation(delete=False)
