"""Memories shared with the caller, and what changed since its last call, within a token budget."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from memory_core.errors import InvalidArgument
from memory_core.records import offer_proof, redis_time
from memory_core.records.codec import unpack
from memory_core.records.damage import UNREADABLE, execute
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.names import check_label
from memory_core.records.scope import Principal
from memory_core.records.times import NEVER, to_iso
from memory_core.redis_client import Client
from memory_server.contract import tokens
from memory_server.contract.answer import most_fitting, partial_reason
from memory_server.contract.memories import Memory
from memory_server.contract.sharing import (
    GrantInfo,
    SharedContextAnswer,
    SharedContextArguments,
    SharedMemory,
    accepting,
)
from memory_server.contract.untrusted_text import counted
from memory_server.contract.validation import check_text
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import RequestContext, reports_integrity
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters
from memory_server.search.search import best_of
from memory_server.search.services import SearchServices
from memory_server.sharing.changes import BEGINNING, ChangePosition, Cursor, Delivered, View, read_cursor

_HEAD_TOKENS = 300
"""Tokens of a memory's ids, times and names."""
_MOST_CHARACTERS = 16
"""Characters that a token has at most, on average."""
_MAX_MEMORIES = 100
_MAX_GRANTS = 100
_OWN_WORDS = 150
"""Tokens of what an answer says besides its memories and grants."""
_LISTED_GRANTS_TOKENS = 8_000


@dataclass(slots=True)
class _Budget:
    """Collects memories, each content once, until the budget is used up."""

    tokens: int
    raised_by: int = 0
    kept: list[tuple[ChangePosition, Record]] = field(default_factory=list[tuple[ChangePosition, Record]])
    cut: bool = False
    full: bool = False
    _contents: set[str] = field(default_factory=set[str])

    def add(self, position: ChangePosition, record: Record) -> bool:
        """Add a memory unless its content is there already; False if it does not fit.

        The first memory is cut to fit, without tags and metadata, so that every call makes progress. A budget that is
        too small for a useful part of it is raised.
        """
        if record.content_hash in self._contents:
            return True
        cost = _tokens_of(record)
        if not self.kept and cost > self.tokens:
            self.raised_by = max(min(cost, _least_of(record)) - self.tokens, 0)
            self.tokens += self.raised_by
        if cost > self.tokens and not self.kept:
            self.cut = True
            record = _cut(record, self.tokens)
        elif cost > self.tokens or len(self.kept) >= _MAX_MEMORIES:
            self.full = True
            return False
        self.tokens -= cost
        self.kept.append((position, record))
        self._contents.add(record.content_hash)
        return True


def _tokens_of(record: Record) -> int:
    texts = [record.content, record.metadata or "", *record.tags, record.context or "", record.source or ""]
    return _HEAD_TOKENS + 2 * tokens.count(json.dumps(texts, ensure_ascii=False))


def _least_of(record: Record) -> int:
    """Return the tokens of a record with the least content that is useful."""
    return _tokens_of(replace(record, tags=(), metadata=None, content="")) + tokens.LEAST_CONTENT


def _cut(record: Record, most: int) -> Record:
    """Shorten the content until it fits; at least one character is left."""
    bare = replace(record, tags=(), metadata=None)
    ends = range(1, min(len(record.content), _MOST_CHARACTERS * most) + 1)
    fitting = bisect_right(ends, most, key=lambda end: _tokens_of(replace(bare, content=record.content[:end])))
    return replace(bare, content=record.content[: max(fitting, 1)])


@reads
@reports_integrity
async def get_shared_context(
    service: SearchServices, request: RequestContext, args: SharedContextArguments
) -> SharedContextAnswer:
    """Return memories that grants show to the caller, without its own and public ones, and the grants and offers.

    With `since`: memories that changed or became visible after it, oldest first. Otherwise newest first, or best
    first with a query. The cursor covers everything returned so far, however small the budget.

    Raises:
        InvalidArgument: a value is not valid, or both `query` and `since` are given.
    """
    if args.query is not None and args.since is not None:
        raise InvalidArgument("query and since were both given", hint="give one of them; since lists all changes")
    context = None if args.context is None else check_label(args.context, "context")
    query = args.query and check_text(args.query, "query", service.settings.limits.query_bytes)
    caller = request.caller
    label = digest(json.dumps([caller.namespace, caller.agent, args.agent_id, context]))[:8]
    cursor = None if args.since is None else read_cursor(args.since, label)
    if not await service.namespaces.knows(request.caller.namespace):
        return SharedContextAnswer(next_cursor=None if query else (cursor or Cursor(label, BEGINNING)).write())
    prepared = await service.namespaces.get(request.caller.namespace)
    end = await _now(service.backend, prepared.keys)
    principal = await resolve(service.backend, request)
    model = await service.models.current(request.caller.namespace)
    given = [grant for grant in principal.grants if args.agent_id in (None, grant.grantor)]
    view = View(service, request, principal, given, ResolvedFilters(context=context), end)
    answer = await _list_grants(service.backend, principal, args.agent_id, args.max_tokens // 2)
    budget = _Budget(max(args.max_tokens - answer.tokens() - _OWN_WORDS, 1))
    if query:
        after, reason = None, await _add_best(view, query, budget)
    else:
        after, reason = await _add_next(view, cursor, budget, label), None
    if index_reason := partial_reason(await service.namespaces.covered(prepared)):
        after, reason = cursor, index_reason
    cut = "a memory was cut to fit; retrieve_memory returns all of it" if budget.cut else None
    answer.reason = "; ".join(filter(None, [reason, *dict.fromkeys(view.warnings), answer.reason, cut])) or None
    answer.partial = bool(answer.reason)
    answer.memories = [_shared_memory(view, position, record, model) for position, record in budget.kept]
    answer.next_cursor = after.write() if after else None
    answer.more = budget.full
    if budget.raised_by:
        answer.note = tokens.raised(args.max_tokens, args.max_tokens + budget.raised_by)
    service.touch(request.caller, [record.id for _, record in budget.kept])
    return answer


async def _now(backend: Backend, keys: Keys) -> float:
    """Return a time of the namespace's clock after all past writes and before all later ones.

    It is Redis's time if that is later: the time of the last write alone would reveal when others write.
    """

    async def fetch(client: Client) -> list[Any]:
        pipe = client.pipeline(transaction=False)
        pipe.time()
        pipe.hget(keys.counters, "clock")
        return await pipe.execute()

    (seconds, microseconds), last = await backend.read(fetch)
    return max(seconds * 1_000_000 + microseconds - 1, int(last or 0)) / 1_000_000


async def _add_best(view: View, query: str, budget: _Budget) -> str | None:
    """Add the best matches of a query; return why the search is partial."""
    selected = build.shared(view.principal, tuple(view.since), view.filters, redis_time.now())
    hits, reason = await best_of(view.service, view.request, view.principal, selected, query, _MAX_MEMORIES)
    for hit in hits:
        position = view.position_of(hit.record)
        if position and not budget.add(position, hit.record):
            break
    return reason


async def _add_next(view: View, cursor: Cursor | None, budget: _Budget, label: str) -> Cursor:
    """Add the memories after a cursor, or the newest without one; return the next cursor."""
    if cursor is None:
        first = view.end
        async with aclosing(view.walk(BEGINNING, view.end, newest_first=True)) as found:
            async for position, record in found:
                if not budget.add(position, record):
                    return Cursor(label, BEGINNING, Delivered(first, view.end, view.grants_digest))
                first = position
        return Cursor(label, view.end)
    last, delivered = cursor.position, cursor.delivered
    if delivered and delivered.grants != view.grants_digest:
        delivered = None
    async with aclosing(_walk_undelivered(view, last, delivered)) as found:
        async for position, record in found:
            if not budget.add(position, record):
                return Cursor(label, last, delivered if delivered and last < delivered.first else None)
            last = position
    return Cursor(label, max(view.end, cursor.position))


async def _walk_undelivered(
    view: View, start: ChangePosition, delivered: Delivered | None
) -> AsyncGenerator[tuple[ChangePosition, Record]]:
    if delivered:
        async for position, record in view.walk(start, delivered.first):
            if position < delivered.first:
                yield position, record
        start = max(start, delivered.last)
    async for position, record in view.walk(start, view.end):
        yield position, record


def _shared_memory(view: View, position: ChangePosition, record: Record, model: Model) -> SharedMemory:
    return SharedMemory(
        memory=Memory.of(record, view.principal, model),
        granted_by=sorted({grant.grantor for grant in view.grants if not record.scope.isdisjoint(grant.tokens)}),
        changed_at=to_iso(position.seen) or "",
    )


@reads
async def list_grants(service: SearchServices, request: RequestContext) -> SharedContextAnswer:
    """List the caller's grants in force and open offers, newest first."""
    return await _list_grants(service.backend, await resolve(service.backend, request), None, _LISTED_GRANTS_TOKENS)


async def _list_grants(backend: Backend, principal: Principal, other: str | None, most: int) -> SharedContextAnswer:
    """List the principal's grants in force and open offers, newest first, in at most so many tokens, but at least one
    of each kind. The reason tells how many are left out."""
    keys = Keys(principal.namespace)

    async def fetch(client: Client) -> tuple[float, list[str], list[dict[bytes, bytes]]]:
        pipe = client.pipeline(transaction=False)
        pipe.time()
        pipe.smembers(keys.granting(principal.agent))
        pipe.hkeys(keys.offers(principal.agent))
        (seconds, _), given, offered = await pipe.execute()
        named = {grant.id for grant in principal.grants} | {raw.decode(errors="replace") for raw in (*given, *offered)}
        for grant_id in sorted(named, reverse=True):
            pipe.hgetall(keys.grant(grant_id))
        return float(seconds), sorted(named, reverse=True), await execute(pipe)

    now, ids, rows = await backend.read(fetch)
    answer = SharedContextAnswer()
    for grant_id, row in zip(ids, rows, strict=True):
        with suppress(*UNREADABLE):  # a damaged record is not listed; the sweeper ends its grant
            fields = {name.decode(): value for name, value in row.items()}
            if fields and float(fields["until"]) > now and _is_genuine(backend, keys, grant_id, fields):
                _add_grant(answer, principal, other, grant_id, fields)
    to_me, by_me, offers = answer.granted_to_me, answer.granted_by_me, answer.offers

    def of_first(number: int) -> SharedContextAnswer:
        dropped = sum(max(len(grants) - number, 0) for grants in (to_me, by_me, offers))
        older = counted(dropped, "older grant or offer is", "older grants and offers are")
        reason = f"{older} not listed; agent_id narrows the lists" if dropped else None
        return SharedContextAnswer(
            reason=reason, granted_to_me=to_me[:number], granted_by_me=by_me[:number], offers=offers[:number]
        )

    longest = min(max(len(to_me), len(by_me), len(offers)), _MAX_GRANTS)
    return of_first(most_fitting(longest, most, lambda number: of_first(number).tokens(most)))


def _is_genuine(backend: Backend, keys: Keys, grant_id: str, row: dict[str, bytes]) -> bool:
    """Whether the server wrote an offer. Grants are checked before: the principal has only genuine ones."""
    return row["state"] != b"offered" or offer_proof.is_genuine(backend.integrity, keys.namespace, grant_id, row)


def _add_grant(
    answer: SharedContextAnswer, principal: Principal, other: str | None, grant_id: str, row: dict[str, bytes]
) -> None:
    """Add a grant or an offer, if the principal still owns its side of it and `other` has the other side."""
    sides = {row["from_owner"].decode(): ("from", "to"), row["to_owner"].decode(): ("to", "from")}
    mine, theirs = sides.get(principal.owner or "", ("", ""))
    if not mine or other not in (None, row[theirs].decode()):
        return
    if row["state"] == b"offered":
        answer.offers.append(grant_info(grant_id, row, principal.agent))
    elif row["state"] == b"active":
        (answer.granted_by_me if mine == "from" else answer.granted_to_me).append(grant_info(grant_id, row))


def grant_info(grant_id: str, row: dict[str, bytes], reader: str = "") -> GrantInfo:
    """Describe a grant or an offer from its Redis hash, to an agent that is one of its sides or to an operator."""
    values: list[Any] = unpack(row["values"])
    kind, until = row["kind"].decode(), float(row["until"])
    info = GrantInfo(
        id=grant_id,
        from_agent=row["from"].decode(),
        to_agent=row["to"].decode(),
        permission="write" if row["permission"] == b"write" else "read",
        context=values[0] if kind == "c" else None,
        tags=values if kind == "t" else [],
        memory_types=values if kind == "y" else [],
        memories={"i": len(values), "o": values[0]}.get(kind),
        transfer=kind == "o",
        grown=int(row.get("grown", 0)),
        granted_at=to_iso(float(row["at"])) or "",
        expires_at=None if until == NEVER else to_iso(until),
        note=row["note"].decode() or None,
    )
    if row["state"] == b"offered":
        info.if_accepted = accepting(
            reader,
            giver=info.from_agent,
            receiver=info.to_agent,
            covers=info.covers,
            permission=info.permission,
            transfer=info.transfer,
        )
    return info
