"""Returns memories: one by id, or page by page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from memory_core.errors import InvalidArgument, NotFound
from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.times import to_iso, to_redis
from memory_core.redis_client import Client
from memory_server.contract import cursors, tokens
from memory_server.contract.answer import most_fitting, partial_reason
from memory_server.contract.arguments import ListArguments, RetrieveArguments
from memory_server.contract.memories import Memory, MemoryAnswer, MemoryListAnswer
from memory_server.contract.tokens import DEFAULT_MAX_TOKENS
from memory_server.contract.validation import check_limit
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import RequestContext, reports_integrity
from memory_server.index import loader, queries
from memory_server.index import query_builder as build
from memory_server.index.filters import resolve_filters
from memory_server.index.loader import Ref
from memory_server.memories import pages
from memory_server.memories.chunks import starts_of
from memory_server.memories.services import MemoryServices
from memory_server.security.open_records import load_readable

_LISTED_TOKENS = DEFAULT_MAX_TOKENS // 20
"""Tokens for each memory that a caller asks to list."""
_SURELY_LONG = 16
"""Characters for each token from which a content is not measured: it does not fit."""


@reads
async def retrieve_memory(service: MemoryServices, request: RequestContext, args: RetrieveArguments) -> MemoryAnswer:
    """Read one memory, or a page of it; its owner also learns how often it was read before.

    Raises NotFound, and InvalidArgument for a cursor of another revision.
    """
    memory_id = args.memory_id
    principal = await resolve(service.backend, request)
    record = await load_readable(service, request, principal, memory_id, whole=True)
    keys = Keys(request.caller.namespace)
    count, last = await service.backend.read(lambda client: client.hmget(keys.use(memory_id), ["count", "last"]))
    if not principal.owns(record.owner):
        count = last = None  # they would tell when others read it
    service.touch(request.caller, [memory_id])
    answer = MemoryAnswer(
        memory=Memory.of(record, principal, await service.models.current(request.caller.namespace)),
        access_count=int(count or 0),
        last_access=to_iso(float(last)) if last else None,
    )
    which = cursors.list_of("retrieve_memory", request.caller.namespace, request.caller.agent, {"memory_id": memory_id})
    return await _page(answer, args, which)


def _start(args: RetrieveArguments, which: str, rev: int, starts: Sequence[int], length: int) -> int:
    if args.cursor is not None:
        return pages.read_cursor(args.cursor, which, rev, length)
    number = args.chunk or 1
    if number > len(starts):
        raise InvalidArgument(f"there is no chunk {number}; the memory has {len(starts)}", hint="give a lower number")
    return starts[number - 1]


async def _page(answer: MemoryAnswer, args: RetrieveArguments, which: str) -> MemoryAnswer:
    """Return the page of an answer that `args` ask for; cursors are `which`. Later pages leave the metadata out."""
    memory, most = answer.memory, args.max_tokens
    content, rev = memory.content, memory.rev
    if args.rev not in (None, rev):
        raise NotFound(f"revision {args.rev} is not kept; the current one is {rev}", hint="leave rev out")
    if args.cursor is not None and args.chunk is not None:
        raise InvalidArgument("cursor and chunk were both given", hint="give one of them")
    if args.cursor is None and args.chunk is None:
        is_short = len(content) <= _SURELY_LONG * most
        if not most or (is_short and answer.tokens(most) <= most):
            return answer
    starts = await starts_of(content)
    start = _start(args, which, rev, starts, len(content))

    def at(start: int, end: int) -> MemoryAnswer:
        more = pages.write_cursor(which, rev, end) if end < len(content) else None
        part = {"content": content[start:end]} | ({"metadata": None} if start else {})
        chunks = pages.chunks_between(starts, start, end)
        return answer.model_copy(
            update={"memory": memory.model_copy(update=part), "chunks": chunks, "next_cursor": more}
        )

    if not most:
        return at(start, len(content))
    if memory.metadata and at(0, 1).tokens() > most / 2:
        memory = memory.model_copy(update={"metadata": None})
        reason = "the metadata is left out; max_tokens=0 gives all"
        answer = answer.model_copy(update={"partial": True, "reason": reason})

    def tokens_of(start: int, end: int) -> int:
        return at(start, end).tokens()

    least = tokens_of(start, start + 1) + tokens.LEAST_CONTENT
    if most < least:
        answer = answer.model_copy(update={"note": tokens.raised(most, least)})
    return at(start, pages.end_of_page(len(content), starts, start, max(most, least), tokens_of))


@reads
@reports_integrity
async def list_memories(service: MemoryServices, request: RequestContext, args: ListArguments) -> MemoryListAnswer:
    """List an agent's readable memories, newest first; by default the caller's own, or all public ones for a caller
    that reads no others. Raises InvalidArgument."""
    principal = await resolve(service.backend, request)
    check_limit(args.limit, service.settings)
    if args.agent_id and args.agent_ids:
        raise InvalidArgument("agent_id and agent_ids were both given", hint="give one of them")
    everyone = request.caller.public_only and not args.agent_id
    agents = args.agent_ids or ([] if everyone else [args.agent_id or request.caller.agent])
    named = args.model_copy(update={"agent_ids": agents})
    filters = await resolve_filters(service.backend, principal, named)
    selected = build.memories(build.readable(principal, filters, redis_time.now()))
    arguments = args.model_dump(mode="json", exclude_defaults=True)
    which = cursors.list_of("get_agent_memories", request.caller.namespace, request.caller.agent, arguments)
    position = _read_cursor(args.cursor, which)
    if not await service.namespaces.knows(request.caller.namespace):
        return MemoryListAnswer(memories=[], total=0, **filters.period)
    prepared = await service.namespaces.get(request.caller.namespace)
    keys, limit, timeout = prepared.keys, args.limit, service.settings.search_timeout_ms

    async def fetch(client: Client) -> tuple[int, list[Record], list[str], bool]:
        """Collect `limit` records. Fetches more if some vanished; later ones may have moved up by then."""
        total = await queries.count(client, keys, selected, timeout, request.cache)
        records, warnings = list[Record](), list[str]()
        offset, seen = 0, set[Ref]()
        query = build.created_before(selected, position)
        while True:
            refs, news = await queries.page(client, keys, query, offset=offset, limit=limit + 1, timeout_ms=timeout)
            new = [ref for ref in refs if ref not in seen]
            loaded = await loader.load_readable(client, keys, new, request, principal, service.backend.integrity)
            opened = await service.vault.open_all(keys.namespace, loaded)
            records, warnings = records + opened.records, [*warnings, *news, *opened.warnings]
            if len(records) > limit or len(refs) <= limit:
                return total, records[:limit], warnings, len(records) > limit
            seen.update(refs)
            offset += len(refs) - (len(new) - len(loaded))

    total, records, warnings, more = await service.namespaces.search(keys.namespace, fetch)
    reason = partial_reason(await service.namespaces.covered(prepared), warnings)
    model = await service.models.current(request.caller.namespace)

    views = [Memory.of(record, principal, model) for record in records]
    bare = [_without_long_metadata(view) for view in views]
    if bare != views:
        reason = "; ".join(
            filter(None, [reason, "long metadata is left out; retrieve_memory with max_tokens=0 gives it"])
        )

    def of_first(number: int) -> MemoryListAnswer:
        shown, left = records[:number], more or number < len(records)
        return MemoryListAnswer(
            memories=bare[:number],
            next_cursor=cursors.write(which, to_redis(shown[-1].created_at)) if left and shown else None,
            total=total,
            partial=bool(reason),
            reason=reason,
            **filters.period,
        )

    fitting = most_fitting(
        len(records), max(DEFAULT_MAX_TOKENS, limit * _LISTED_TOKENS), lambda number: of_first(number).tokens()
    )
    return of_first(fitting)


def _without_long_metadata(view: Memory) -> Memory:
    """Leave out metadata that would fill most of a page."""
    size = tokens.count(json.dumps(view.metadata, ensure_ascii=False)) if view.metadata else 0
    return view.model_copy(update={"metadata": None}) if size > DEFAULT_MAX_TOKENS / 2 else view


def _read_cursor(cursor: str | None, which: str) -> float | None:
    if cursor is None:
        return None
    try:
        position = float(cursors.read(cursor, which))
    except ValueError:
        raise cursors.unknown(cursor) from None
    if not math.isfinite(position):
        raise cursors.unknown(cursor)
    return position
