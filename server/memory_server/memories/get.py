"""Returns memories: one by id, or page by page."""

from __future__ import annotations

import base64
import binascii
import math

from memory_core.errors import InvalidArgument, echo
from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.times import to_iso, to_redis
from memory_core.redis_client import Client
from memory_server.contract.answer import partial_reason
from memory_server.contract.arguments import ListArguments
from memory_server.contract.memories import Memory, MemoryAnswer, MemoryListAnswer
from memory_server.contract.validation import check_limit
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import RequestContext, reports_integrity
from memory_server.index import loader, queries
from memory_server.index import query_builder as build
from memory_server.index.filters import resolve_filters
from memory_server.index.loader import Ref
from memory_server.memories.services import MemoryServices
from memory_server.security.open_records import load_readable


@reads
async def retrieve_memory(service: MemoryServices, request: RequestContext, memory_id: str) -> MemoryAnswer:
    """Read one whole memory; its owner also learns how often it was read before. Raises NotFound."""
    principal = await resolve(service.backend, request)
    record = await load_readable(service, request, principal, memory_id, whole=True)
    keys = Keys(request.caller.namespace)
    count, last = await service.backend.read(lambda client: client.hmget(keys.use(memory_id), ["count", "last"]))
    if not principal.owns(record.owner):
        count = last = None  # they would tell when others read it
    service.touch(request.caller, [memory_id])
    return MemoryAnswer(
        memory=Memory.of(record, principal, await service.models.current(request.caller.namespace)),
        access_count=int(count or 0),
        last_access=to_iso(float(last)) if last else None,
    )


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
    position = _read_cursor(args.cursor)
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
    return MemoryListAnswer(
        memories=[Memory.of(record, principal, model) for record in records],
        next_cursor=_write_cursor(records[-1].created_at) if more and records else None,
        total=total,
        partial=bool(reason),
        reason=reason,
        **filters.period,
    )


def _write_cursor(created_at: float) -> str:
    return base64.urlsafe_b64encode(to_redis(created_at).encode()).decode().rstrip("=")


def _read_cursor(cursor: str | None) -> float | None:
    if cursor is None:
        return None
    try:
        position = float(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii"))
        if not math.isfinite(position):
            raise ValueError
        return position
    except (ValueError, binascii.Error):
        raise InvalidArgument(f"unknown cursor {echo(cursor)}", hint="use next_cursor unchanged") from None
