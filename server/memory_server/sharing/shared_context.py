"""What others let the caller see, and what of it changed since it last asked, within a budget."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from memory_core.errors import InvalidArgument
from memory_core.records import redis_time
from memory_core.records.codec import unpack
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.names import check_label
from memory_core.records.scope import Principal
from memory_core.records.times import NEVER, to_iso
from memory_core.redis_client import Client
from memory_server.contract.answer import partial_reason
from memory_server.contract.memories import Memory
from memory_server.contract.sharing import GrantInfo, SharedContextAnswer, SharedContextArguments, SharedMemory
from memory_server.contract.validation import check_text
from memory_server.engine.backend import Backend
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve
from memory_server.engine.request import RequestContext, reports_integrity
from memory_server.index import query as build
from memory_server.index.filters import ResolvedFilters
from memory_server.search.search import best_of
from memory_server.search.services import SearchServices
from memory_server.sharing.changes import BEGINNING, ChangePosition, Cursor, Told, View, read_cursor, walk

_CHARS_PER_TOKEN = 4
_MOST_MEMORIES = 100
_MOST_GRANTS = 100


@dataclass(slots=True)
class _Budget:
    """Gathers memories, each content once, while there is room."""

    chars: int
    kept: list[tuple[ChangePosition, Record]] = field(default_factory=list[tuple[ChangePosition, Record]])
    cut: bool = False
    full: bool = False
    _contents: set[str] = field(default_factory=set[str])

    def take(self, place: ChangePosition, record: Record) -> bool:
        """Keep a memory, or not where its content is kept already; false when there is no room for it.

        The first is cut to what room there is, so that every call brings its caller further.
        """
        if record.content_hash in self._contents:
            return True
        if len(record.content) > self.chars and not self.kept:
            self.cut = True
            record = replace(record, content=record.content[: self.chars])
        if len(record.content) > self.chars or len(self.kept) >= _MOST_MEMORIES:
            self.full = True
            return False
        self.chars -= len(record.content)
        self.kept.append((place, record))
        self._contents.add(record.content_hash)
        return True


@reads
@reports_integrity
async def get_shared_context(
    service: SearchServices, request: RequestContext, args: SharedContextArguments
) -> SharedContextAnswer:
    """Show what grants let the caller see that is neither its own nor public, with the grants and offers themselves.

    With `since`, what changed or came to be seen after it, oldest first; else newest first, or best first with a
    query. The cursor stands for what was told up to and with this answer, however small the budget.

    Raises:
        InvalidArgument: a value is not valid, or a query was given with `since`.
    """
    if args.query is not None and args.since is not None:
        raise InvalidArgument("query and since were both given", hint="give one of them; since lists all changes")
    context = None if args.context is None else check_label(args.context, "context")
    query = args.query and check_text(args.query, "query", service.settings.limits.query_bytes)
    label = digest(json.dumps([args.agent_id, context]))[:8]
    cursor = None if args.since is None else read_cursor(args.since, label)
    if not await service.namespaces.knows(request.caller.namespace):
        return SharedContextAnswer(next_cursor=None if query else (cursor or Cursor(label, BEGINNING)).write())
    prepared = await service.namespaces.get(request.caller.namespace)
    end = await _now(service.backend, prepared.keys)
    principal = await resolve(service.backend, request)
    model = await service.models.current(request.caller.namespace)
    given = [grant for grant in principal.grants if args.agent_id in (None, grant.grantor)]
    view = View(principal, given, ResolvedFilters(context=context), end)
    budget = _Budget(args.max_tokens * _CHARS_PER_TOKEN)
    if query:
        after, reason = None, await _best(service, request, view, query, budget)
    else:
        after, reason = await _next(service, request, view, cursor, budget, label), None
    index_reason = partial_reason(await service.namespaces.covered(prepared))
    if index_reason:
        after, reason = cursor, index_reason
    shown = await _grants(service.backend, principal, args.agent_id)
    notes = [
        reason,
        *dict.fromkeys(view.warnings),
        shown.note,
        "a content was cut to fit; retrieve_memory gives it whole" if budget.cut else None,
    ]
    reason = "; ".join(note for note in notes if note) or None
    service.touch(request.caller.namespace, [record.id for _, record in budget.kept])
    return SharedContextAnswer(
        memories=[_shown(view, place, record, model) for place, record in budget.kept],
        next_cursor=after.write() if after else None,
        more=budget.full,
        granted_to_me=shown.to_me,
        granted_by_me=shown.by_me,
        offers=shown.offers,
        partial=bool(reason),
        reason=reason,
    )


async def _now(backend: Backend, keys: Keys) -> float:
    """Give a moment of the namespace's clock after all that was written, and before all that will be.

    It is of Redis's clock where that is ahead: the last writing's alone would tell whenever others wrote something.
    """

    async def fetch(client: Client) -> list[Any]:
        pipe = client.pipeline(transaction=False)
        pipe.time()
        pipe.hget(keys.counters, "clock")
        return await pipe.execute()

    (seconds, microseconds), last = await backend.read(fetch)
    return max(seconds * 1_000_000 + microseconds - 1, int(last or 0)) / 1_000_000


async def _best(
    service: SearchServices, request: RequestContext, view: View, query: str, budget: _Budget
) -> str | None:
    """Gather what matches best; give what the search lacked."""
    selected = build.shared(view.principal, tuple(view.since), view.filters, redis_time.now())
    hits, reason = await best_of(service, request, view.principal, selected, query, _MOST_MEMORIES)
    for hit in hits:
        place = view.place_of(hit.record)
        if place and not budget.take(place, hit.record):
            break
    return reason


async def _next(
    service: SearchServices, request: RequestContext, view: View, cursor: Cursor | None, budget: _Budget, label: str
) -> Cursor:
    """Gather what comes next; give where that leaves the caller."""
    if cursor is None:
        first = view.end
        async with aclosing(walk(service, request, view, BEGINNING, view.end, newest_first=True)) as places:
            async for place, record in places:
                if not budget.take(place, record):
                    return Cursor(label, BEGINNING, Told(first, view.end, view.grants_digest))
                first = place
        return Cursor(label, view.end)
    last = cursor.place
    told = cursor.told if cursor.told and cursor.told.grants == _digest_then(view, cursor.told) else None
    async with aclosing(_untold(service, request, view, last, told)) as places:
        async for place, record in places:
            if not budget.take(place, record):
                return Cursor(label, last, told if told and last < told.first else None)
            last = place
    return Cursor(label, max(view.end, cursor.place))


async def _untold(
    service: SearchServices, request: RequestContext, view: View, start: ChangePosition, told: Told | None
) -> AsyncGenerator[tuple[ChangePosition, Record]]:
    """Walk on from a place, leaving out what was told already."""
    if told:
        async for place, record in walk(service, request, view, start, told.first):
            if place < told.first:
                yield place, record
        start = max(start, told.last)
    async for place, record in walk(service, request, view, start, view.end):
        yield place, record


def _digest_then(view: View, told: Told) -> str:
    """Stand for those grants of now that were there when something was told."""
    return replace(view, now=told.last.seen).grants_digest


def _shown(view: View, place: ChangePosition, record: Record, model: Model) -> SharedMemory:
    return SharedMemory(
        memory=Memory.of(record, view.principal, model),
        granted_by=sorted({grant.grantor for grant in view.grants if not record.scope.isdisjoint(grant.tokens)}),
        changed_at=to_iso(place.seen) or "",
    )


@dataclass(slots=True)
class _Listed:
    """Grants and offers to show."""

    to_me: list[GrantInfo] = field(default_factory=list[GrantInfo])
    by_me: list[GrantInfo] = field(default_factory=list[GrantInfo])
    offers: list[GrantInfo] = field(default_factory=list[GrantInfo])
    note: str | None = None


async def _grants(backend: Backend, principal: Principal, other: str | None) -> _Listed:
    """Load the grants in force and the offers waiting that the principal is a side of, newest first."""
    keys = Keys(principal.namespace)

    async def fetch(client: Client) -> tuple[float, list[str], list[dict[bytes, bytes]]]:
        pipe = client.pipeline(transaction=False)
        pipe.time()
        pipe.smembers(keys.granting(principal.agent))
        pipe.hkeys(keys.offers(principal.agent))
        (seconds, _), given, offered = await pipe.execute()
        named = {grant.id for grant in principal.grants} | {raw.decode() for raw in (*given, *offered)}
        for grant_id in sorted(named, reverse=True):
            pipe.hgetall(keys.grant(grant_id))
        return float(seconds), sorted(named, reverse=True), await pipe.execute()

    now, ids, rows = await backend.read(fetch)
    listed = _Listed()
    for grant_id, row in zip(ids, rows, strict=True):
        _list(listed, principal, other, now, grant_id, {name.decode(): value for name, value in row.items()})
    left_out = [_trim(grants) for grants in (listed.to_me, listed.by_me, listed.offers)]
    if any(left_out):
        listed.note = f"{sum(left_out)} older grants and offers are not listed"
    return listed


def _list(
    listed: _Listed, principal: Principal, other: str | None, now: float, grant_id: str, row: dict[str, bytes]
) -> None:
    """Put a grant or an offer in its list, if it still counts and the principal still is the side it names."""
    if not row or float(row["until"]) <= now:
        return
    sides = {"from": row["from"].decode(), "to": row["to"].decode()}
    mine = "from" if sides["from"] == principal.agent else "to"
    theirs = sides["to" if mine == "from" else "from"]
    if row[f"{mine}_owner"].decode() != principal.owner or other not in (None, theirs):
        return
    info = grant_info(grant_id, row)
    match row["state"], mine:
        case b"offered", _:
            listed.offers.append(info)
        case b"active", "from":
            listed.by_me.append(info)
        case b"active", _:
            listed.to_me.append(info)
        case _:
            return


def _trim(grants: list[GrantInfo]) -> int:
    """Shorten a list to what is shown; give how many that leaves out."""
    left_out = max(len(grants) - _MOST_GRANTS, 0)
    del grants[_MOST_GRANTS:]
    return left_out


def grant_info(grant_id: str, row: dict[str, bytes]) -> GrantInfo:
    """Tell of a grant or an offer by its hash."""
    values: list[Any] = unpack(row["values"])
    kind, until = row["kind"].decode(), float(row["until"])
    return GrantInfo(
        id=grant_id,
        from_agent=row["from"].decode(),
        to_agent=row["to"].decode(),
        permission="write" if row["permission"] == b"write" else "read",
        context=values[0] if kind == "c" else None,
        tags=values if kind == "t" else [],
        memory_types=values if kind == "y" else [],
        memories=len(values) if kind == "i" else None,
        granted_at=to_iso(float(row["at"])) or "",
        expires_at=None if until == NEVER else to_iso(until),
        note=row["note"].decode() or None,
    )
