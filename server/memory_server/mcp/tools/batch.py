"""The tool that runs many operations in one call: errors isolated, results in order, embeddings together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, InputRequiredResult, TextContent

from memory_core.errors import InvalidArgument, echo
from memory_server.contract import arguments as arguments_of
from memory_server.contract.answer import BatchAnswer, Outcome
from memory_server.engine.batch_cache import BatchCache
from memory_server.engine.request import DeferredWrites, RequestContext
from memory_server.mcp.tools.toolkit import StrictTool, make_tool
from memory_server.runtime import Runtime

if TYPE_CHECKING:
    from memory_server.engine.durability import Reached

Ctx = Context[Any, Any]
_TOGETHER = 64
"""Reads that run at the same time."""
Operation = tuple[str, dict[str, Any]]


def batch_tool(runtime: Runtime, tools: Sequence[StrictTool]) -> StrictTool:
    """Make the tool over the other tools."""
    by_name = {tool.name: tool for tool in tools}

    async def batch_operations(ctx: Ctx, request: RequestContext, args: arguments_of.BatchArguments) -> BatchAnswer:
        """Run up to 1,000 operations, each {op: a tool's name, ...its arguments}; writes keep their order.

        Stores do not wait for their vectors unless they say wait: true.
        """
        limit = runtime.settings.limits.operations
        if len(args.operations) > limit:
            raise InvalidArgument(f"{len(args.operations)} operations; at most {limit} are allowed", hint="split them")
        operations = [_read(operation) for operation in args.operations]
        runtime.gate.take(request.caller, len(operations))
        await _embed_together(request, runtime, [one for one in operations if _allowed(request, by_name, one[0])])
        outcomes: list[Outcome] = []
        service = await runtime.service()
        batch = request.of_batch(DeferredWrites())
        with service.inflight_reads.reading(request.caller.namespace, request.caller.agent):
            async for outcome in _run(ctx, batch, by_name, operations):
                outcomes.append(outcome)
                if len(outcomes) % _TOGETHER == 0 or len(outcomes) == len(operations):
                    await ctx.report_progress(len(outcomes), len(operations))
                if args.stop_on_error and not outcome.ok:
                    break
        _tell_how_far(outcomes, await service.durability.settled(batch))
        outcomes += [_SKIPPED] * (len(operations) - len(outcomes))
        failed = sum(not outcome.ok for outcome in outcomes)
        return BatchAnswer(results=outcomes, succeeded=len(outcomes) - failed, failed=failed)

    return make_tool(batch_operations, arguments_of.BatchArguments, destructive=True, scope=None)


def _tell_how_far(outcomes: Sequence[Outcome], reached: Mapping[str, Reached]) -> None:
    """Put into each answer how far its write has come by the end of the batch."""
    for outcome in outcomes:
        answer = outcome.result or {}
        memory_id = answer.get("memory_id") or answer.get("memory", {}).get("memory_id")
        if "durability" in answer and memory_id in reached:
            one = reached[memory_id]
            answer |= {"durability": one.level, **({"unconfirmed": one.unconfirmed} if one.unconfirmed else {})}


_SKIPPED = Outcome(ok=False, error={"code": "skipped", "message": "an operation before this one failed"})


def _allowed(request: RequestContext, tools: Mapping[str, StrictTool], name: str) -> bool:
    tool = tools.get(name)
    return tool is not None and tool.is_allowed(request)


def _read(operation: Mapping[str, Any]) -> Operation:
    arguments = dict(operation)
    name = arguments.pop("op", None)
    if name == "store_memory":
        arguments.setdefault("wait", False)
    return name if isinstance(name, str) else "", arguments


async def _embed_together(request: RequestContext, runtime: Runtime, operations: Sequence[Operation]) -> None:
    """Bring the vectors that single operations will ask for into the cache, in a few large asks."""
    from memory_server.memories.chunks import embed_ahead
    from memory_server.search.query_parser import texts_to_embed

    wanted = [_wanted(name, arguments) for name, arguments in operations]
    queries = [text for kind, text in wanted if kind == "hybrid"]
    texts = [text for kind, text in wanted if kind == "verbatim"]
    if not queries and not texts:
        return
    service = await runtime.service()
    await embed_ahead(service.embeddings, texts + await texts_to_embed(service, request, queries), request.caller)


def _wanted(name: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Say what text an operation will have embedded, and whether that is a query in which names are to be found."""
    text = arguments.get("query" if name == "semantic_search" else "content")
    if not isinstance(text, str) or not text.strip():
        return "", ""
    if name == "semantic_search":
        mode = arguments.get("mode", "hybrid")
        return "verbatim" if mode == "vector" else str(mode), text
    if name == "store_memory" and arguments["wait"] is True and arguments.get("sensitive") in (None, False):
        from memory_server.memories.record_encoder import embedding_text

        source = arguments.get("source")
        return "verbatim", embedding_text(text, source if isinstance(source, str) else None)
    return "", ""


async def _run(
    ctx: Ctx, batch: RequestContext, tools: Mapping[str, StrictTool], operations: Sequence[Operation]
) -> AsyncGenerator[Outcome]:
    """Run operations in order; neighbouring reads run together."""

    def is_read(operation: Operation) -> bool:
        tool = tools.get(operation[0])
        return bool(tool and tool.annotations and tool.annotations.read_only_hint)

    for reads, group in groupby(operations, key=is_read):
        neighbours = list(group)
        size = _TOGETHER if reads else 1
        for start in range(0, len(neighbours), size):
            together = neighbours[start : start + size]
            # A write shares no cache, because what it reads changes, by the write itself first of all.
            cache = BatchCache() if reads else None
            outcomes = await asyncio.gather(*(_one(ctx, batch, cache, tools, operation) for operation in together))
            for outcome in outcomes:
                yield outcome


async def _one(
    ctx: Ctx, batch: RequestContext, cache: BatchCache | None, tools: Mapping[str, StrictTool], operation: Operation
) -> Outcome:
    name, arguments = operation
    tool = tools.get(name)
    if tool is None:
        message = f"op {echo(name)} is not an operation; allowed: {', '.join(tools)}"
        return Outcome(ok=False, error={"code": InvalidArgument.code, "message": message})
    result = cast(CallToolResult | InputRequiredResult, await tool.run_within(batch, arguments, ctx, cache))
    if isinstance(result, InputRequiredResult):
        message = "more than one memory would go, and nobody can be asked within a batch; send confirm: true"
        return Outcome(ok=False, error={"code": "confirmation_needed", "message": message})
    structured = result.structured_content or {}
    if not result.is_error:
        return Outcome(ok=True, result=structured)
    text = result.content[0].text if isinstance(result.content[0], TextContent) else ""
    return Outcome(ok=False, error=structured.get("error") or {"code": "internal", "message": text})
