"""The tool that runs many operations in one call. Results keep their order, and each error stays its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, TextContent
from pydantic_core import to_json

from memory_core.errors import InvalidArgument, echo
from memory_server.contract import arguments as arguments_of
from memory_server.contract.batch import BatchAnswer, Outcome, lines_of
from memory_server.contract.memories import not_confirmed
from memory_server.engine.batch_cache import BatchCache
from memory_server.engine.request_context import DeferredWrites, RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime

if TYPE_CHECKING:
    from memory_server.engine.durability import Reached

Ctx = Context[Any, Any]
_ANSWER_BYTES = 16 << 20
"""How long the results of a batch may be, as JSON. Results beyond it are left out, and no further operation runs."""
_CONCURRENT_READS, _FEW_READS = 64, 8
_LONGEST_REST, _TURN_SECONDS = 0.05, 0.25
"""Seconds of a rest, and those after which another call of the agent gets its turn."""
Operation = tuple[str, dict[str, Any]]


def batch_tool(runtime: Runtime, tools: Sequence[StrictTool]) -> StrictTool:
    """Make the tool over the other tools."""
    by_name = {tool.name: tool for tool in tools}

    async def batch_operations(ctx: Ctx, request: RequestContext, args: arguments_of.BatchArguments) -> BatchAnswer:
        """Run up to 1,000 operations in one call, such as many stores; writes keep their order."""
        limit = runtime.settings.limits.operations
        if len(args.operations) > limit:
            raise InvalidArgument(f"{len(args.operations)} operations; at most {limit} are allowed", hint="split them")
        operations = [_parse(operation) for operation in args.operations]
        runtime.gate.take(request.caller, len(operations))
        await _embed_ahead(request, runtime, [one for one in operations if _allowed(request, by_name, one[0])])
        outcomes: list[Outcome] = []
        service = await runtime.service()
        batch = request.of_batch(DeferredWrites(), runtime.settings.limits.batch_wait_seconds)
        with service.inflight_reads.reading(request.caller.namespace, request.caller.agent):
            async for outcome in _run(ctx, batch, by_name, operations):
                outcomes.append(outcome)
                if len(outcomes) % _CONCURRENT_READS == 0 or len(outcomes) == len(operations):
                    with batch.without_slot():  # the client may read slowly
                        await ctx.report_progress(len(outcomes), len(operations))
                if args.stop_on_error and not outcome.ok:
                    break
        _set_durability(outcomes, await service.durability.settled(batch))
        outcomes += [_SKIPPED] * (len(operations) - len(outcomes))
        failed = sum(not outcome.ok for outcome in outcomes)
        answer = BatchAnswer(results=outcomes, succeeded=len(outcomes) - failed, failed=failed)
        return answer.fitted(args.max_tokens)

    return make_tool(batch_operations, arguments_of.BatchArguments, effects=(), destructive=True)


def _set_durability(outcomes: Sequence[Outcome], reached: Mapping[str, Reached]) -> None:
    """Set the durability that each write has reached at the end of the batch."""
    for outcome in outcomes:
        answer = outcome.result or {}
        memory_id = answer.get("memory_id") or answer.get("memory", {}).get("memory_id")
        if "durability" in answer and memory_id in reached:
            one = reached[memory_id]
            answer |= {"durability": one.level, **({"unconfirmed": one.unconfirmed} if one.unconfirmed else {})}
            outcome.said += [not_confirmed(one.unconfirmed)] if one.unconfirmed else []


_SKIPPED = Outcome(ok=False, error={"code": "skipped", "message": "an operation before this one failed"})
_NO_ROOM = "the results before this one fill the answer"
_FULL = Outcome(ok=False, error={"code": "skipped", "message": _NO_ROOM, "hint": "send it in a new batch"})


def _allowed(request: RequestContext, tools: Mapping[str, StrictTool], name: str) -> bool:
    tool = tools.get(name)
    return tool is not None and tool.is_allowed(request)


def _parse(operation: Mapping[str, Any]) -> Operation:
    arguments = dict(operation)
    name = arguments.pop("op", None)
    if name == "store_memory" and arguments.get("wait") in (None, ""):
        arguments["wait"] = False
    return name if isinstance(name, str) else "", arguments


async def _embed_ahead(request: RequestContext, runtime: Runtime, operations: Sequence[Operation]) -> None:
    """Embed the texts of all operations in a few large requests, so that each operation finds its vector cached."""
    to_embed = [_text_to_embed(name, arguments) for name, arguments in operations]
    queries = [text for kind, text in to_embed if kind == "hybrid"]
    texts = [text for kind, text in to_embed if kind == "verbatim"]
    if not queries and not texts:
        return
    service = await runtime.service()
    texts += await lazy.query_parser.texts_to_embed(service, request, queries)
    await lazy.chunks.embed_ahead(service.embeddings, texts, request.caller)


def _text_to_embed(name: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Return the text that an operation embeds, preceded by its kind: `verbatim`, or the mode of a search."""
    text = arguments.get("query" if name == "semantic_search" else "content")
    if not isinstance(text, str) or not text.strip():
        return "", ""
    if name == "semantic_search":
        mode = arguments.get("mode") or "hybrid"
        return "verbatim" if mode == "vector" else str(mode), text
    if name == "store_memory" and arguments["wait"] is True and not arguments.get("sensitive"):
        source = arguments.get("source")
        return "verbatim", lazy.record_encoder.embedding_text(text, source if isinstance(source, str) else None)
    return "", ""


async def _run(
    ctx: Ctx, batch: RequestContext, tools: Mapping[str, StrictTool], operations: Sequence[Operation]
) -> AsyncGenerator[Outcome]:
    """Run operations in order while there is room for results; adjacent reads run concurrently."""

    def is_read(operation: Operation) -> bool:
        tool = tools.get(operation[0])
        return bool(tool and tool.annotations and tool.annotations.read_only_hint)

    room, slot_since = _ANSWER_BYTES, time.monotonic()
    for reads, group in groupby(operations, key=is_read):
        adjacent = list(group)
        start = 0
        while start < len(adjacent):
            # Writes use no cache, because they change the data that they read.
            cache = BatchCache() if reads else None
            some = adjacent[start : start + (_reads_at_once(batch) if reads else 1)]
            start += len(some)
            if room < 0:
                for _ in some:
                    yield _FULL
                continue
            await batch.check_credential()
            began = time.monotonic()
            for outcome in await asyncio.gather(*(_one(ctx, batch, cache, tools, operation) for operation in some)):
                room -= len(to_json(outcome))
                yield _FULL if reads and room < 0 else outcome
            if _shares_time(batch):
                await asyncio.sleep(min(time.monotonic() - began, _LONGEST_REST))
            if batch.slot is not None and time.monotonic() - slot_since > _TURN_SECONDS:
                async with batch.slot.waiting():
                    pass  # another call of the agent may run
                slot_since = time.monotonic()


def _reads_at_once(batch: RequestContext) -> int:
    """Return how many reads run side by side: few while others call too, because the event loop runs them in a row."""
    return _FEW_READS if _shares_time(batch) else _CONCURRENT_READS


def _shares_time(batch: RequestContext) -> bool:
    """Whether other agents call too. A batch then rests after each step for as long as the step took."""
    return batch.slot is not None and batch.slot.others_call


async def _one(
    ctx: Ctx, batch: RequestContext, cache: BatchCache | None, tools: Mapping[str, StrictTool], operation: Operation
) -> Outcome:
    name, arguments = operation
    tool = tools.get(name)
    if tool is None:
        message = f"op {echo(name)} is not an operation; allowed: {', '.join(tools)}"
        return Outcome(ok=False, error={"code": InvalidArgument.code, "message": message})
    result = cast(CallToolResult, await tool.run_within(batch, arguments, ctx, cache))
    structured = result.structured_content or {}
    texts = [block.text for block in result.content if isinstance(block, TextContent)]
    if not result.is_error:
        is_change = not (tool.annotations and tool.annotations.read_only_hint)
        return Outcome(ok=True, result=structured, said=lines_of(texts), is_change=is_change)
    text = " ".join(texts)
    return Outcome(ok=False, error=structured.get("error") or {"code": "internal", "message": text})
