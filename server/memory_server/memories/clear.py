"""Removes memories: by id, by filter, or those that have expired."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from memory_core.errors import ConfirmationNeeded, InvalidArgument, MemoryServiceError
from memory_core.records import redis_time
from memory_core.records.audit_entry import AuditEntry
from memory_core.records.authority import Effect
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import Record
from memory_core.records.names import SEPARATOR
from memory_core.records.scope import NOBODY, Principal
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_server.contract.arguments import ClearArguments
from memory_server.contract.memories import ClearAnswer
from memory_server.contract.validation import check_ids
from memory_server.engine.audited_calls import AuditedCall
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import RequestContext
from memory_server.index import loader, queries
from memory_server.index import query_builder as build
from memory_server.index.filters import resolve_filters
from memory_server.index.loader import Ref, UnverifiedRecord
from memory_server.index.query_builder import Query
from memory_server.memories.chunks import settle_or_tell
from memory_server.memories.services import MemoryServices

DELETED_AT_ONCE = 24
"""Memories that one Function call removes from the graph, so that Redis never stalls."""
_MOST_LISTED = 10_000
"""The most memories that a person is asked about; more need `confirm`."""
_CONFIRM = "call again with confirm: true, or dry_run: true to look first"


@dataclass(frozen=True, slots=True)
class ClearPlan:
    """The memories to clear: named ids, or those that a query selects."""

    request: RequestContext
    principal: Principal
    matched: int
    ids: tuple[str, ...] = ()
    query: Query | None = None
    not_yours: tuple[str, ...] = ()
    unknown: int = 0
    """Of the named ids: those of others that the caller reads, and how many name nothing that it may read."""
    period: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def subject(self) -> str:
        """What a confirmation is about: the owner and the exact memories."""
        return digest(SEPARATOR.join([self.principal.namespace, self.principal.agent, *sorted(self.ids)]))


async def select(service: MemoryServices, request: RequestContext, args: ClearArguments) -> ClearPlan:
    """Find the caller's memories to clear; an admin may name one other agent. Raises InvalidArgument or Forbidden."""
    by_filter = args.has_filters or args.expired_only
    if not args.memory_ids and not by_filter:
        raise InvalidArgument("nothing selected", hint="give memory_ids, a filter, or expired_only")
    if args.memory_ids and by_filter:
        raise InvalidArgument("memory_ids and filters were both given", hint="give one or the other")
    acting = [request.acting_as(agent_id) for agent_id in dict.fromkeys(args.agent_ids or ())] or [request]
    if len(acting) > 1:
        raise InvalidArgument("agent_ids names several agents", hint="clear the memories of one at a time")
    principal = await resolve(service.backend, acting[0])
    if not args.memory_ids:
        return await _selected(service, request, principal, args)
    backend, keys = service.backend, Keys(principal.namespace)
    refs = [Ref(memory_id) for memory_id in check_ids(args.memory_ids, service.settings)]
    found = await backend.read(lambda client: loader.load_all(client, keys, refs, backend.integrity))
    owned = tuple(record.id for record in found if principal.owns(record.owner))
    readable = _readable(request, principal, found)
    others = tuple(one for one in readable if one not in owned)
    unknown = len({ref.memory_id for ref in refs}) - len(owned) - len(others)
    return ClearPlan(request, principal, len(owned), ids=owned, not_yours=others, unknown=unknown)


def _readable(
    request: RequestContext, principal: Principal, found: Sequence[Record | UnverifiedRecord]
) -> tuple[str, ...]:
    """Return the ids of what the caller reads anyway. What it may not read looks like what does not exist."""
    if not request.may(Effect.READ_MEMORIES):
        return ()
    now = redis_time.now()
    records = [one for one in found if isinstance(one, Record) and one.expires_at > now]
    return tuple(one.id for one in records if principal.may_see(one))


async def listed(service: MemoryServices, plan: ClearPlan) -> ClearPlan:
    """Name the memories that a query selects, so that a person confirms exactly these. Raises ConfirmationNeeded."""
    if plan.query is None:
        return plan
    if plan.matched > _MOST_LISTED:
        message = f"this would delete {plan.matched} memories for good; a person is asked about {_MOST_LISTED} at most"
        raise ConfirmationNeeded(message, hint=_CONFIRM)
    ids = await _page(service, plan.principal.namespace, plan.query, _MOST_LISTED)
    return replace(plan, matched=len(ids), ids=tuple(ids), query=None)


async def clear_memory(service: MemoryServices, plan: ClearPlan, *, confirmed: bool, dry_run: bool) -> ClearAnswer:
    """Remove the selected memories and count them. Raises ConfirmationNeeded (more than one, not confirmed)."""
    told: dict[str, Any] = {"not_yours": list(plan.not_yours) or None, "unknown": plan.unknown or None, **plan.period}
    if dry_run:
        return ClearAnswer(matched=plan.matched, deleted=0, dry_run=True, **told)
    if plan.matched > 1 and not confirmed:
        raise ConfirmationNeeded(f"this would delete {plan.matched} memories for good", hint=_CONFIRM)
    total, parts = 0, _parts(service, plan)
    try:
        async for ids in parts:
            await plan.request.check_stale_credential()
            deleted = await _delete(service, plan, ids)
            total += deleted
            if total >= service.settings.limits.clear or (plan.query is not None and not deleted):
                break
    except MemoryServiceError as error:
        if not total:
            raise
        reason = f"it stopped midway, and more may be deleted: {error.message}"
        return ClearAnswer(matched=plan.matched, deleted=total, partial=True, reason=reason, **told)
    return ClearAnswer(matched=plan.matched, deleted=total, **told)


async def _parts(service: MemoryServices, plan: ClearPlan) -> AsyncGenerator[Sequence[str]]:
    """Give the ids of a plan in slices. A query is asked again each time, because the slice before is gone."""
    for part in slices(plan.ids, DELETED_AT_ONCE):
        yield part
    while plan.query is not None and (
        ids := await _page(service, plan.principal.namespace, plan.query, DELETED_AT_ONCE)
    ):
        yield ids


async def _page(service: MemoryServices, namespace: str, query: Query, limit: int) -> list[str]:
    keys, timeout = Keys(namespace), service.settings.search_timeout_ms
    refs, _ = await service.namespaces.search(
        namespace, lambda client: queries.page(client, keys, query, offset=0, limit=limit, timeout_ms=timeout)
    )
    return [ref.memory_id for ref in refs]


async def _selected(
    service: MemoryServices, request: RequestContext, principal: Principal, args: ClearArguments
) -> ClearPlan:
    if not await service.namespaces.knows(principal.namespace):
        return ClearPlan(request, principal, 0)
    prepared = await service.namespaces.get(principal.namespace)
    own = replace(principal, grants=())
    filters = await resolve_filters(service.backend, principal, args, owners=principal.owners or (NOBODY,))
    now = await service.backend.read(lambda client: _latest(client, prepared.keys))
    query = build.expired(own, filters, now) if args.expired_only else build.readable(own, filters, now)
    query = build.memories(build.created_before(query, now))
    timeout = service.settings.search_timeout_ms
    matched = await service.namespaces.search(
        principal.namespace, lambda client: queries.count(client, prepared.keys, query, timeout)
    )
    return ClearPlan(request, principal, matched, query=query, period=filters.period)


async def _latest(client: Client, keys: Keys) -> float:
    """Return a time after every stored memory: a namespace's own clock never goes back, Redis's may."""
    now, clock = await redis_time.ask(client), await client.hget(keys.counters, "clock")
    return max(now, (int(clock or 0) + 1) / 1_000_000)


async def _delete(service: MemoryServices, plan: ClearPlan, ids: Sequence[str]) -> int:
    namespace, owners, call = plan.principal.namespace, plan.principal.owners, plan.request.call
    audit = plan.request.caller.audit("clear_memory", ids)
    agent = plan.principal.agent
    return await delete(service, namespace, ids, agent=agent, owners=owners, audit=audit, audited_call=call)


async def delete(
    service: MemoryServices,
    namespace: str,
    ids: Sequence[str],
    *,
    audit: AuditEntry,
    audited_call: AuditedCall | None = None,
    agent: str | None = None,
    owners: Sequence[str] = (),
    writer: str | None = None,
    since: float = 0.0,
) -> int:
    """Remove memories and return how many.

    Removes those of the `owners` that `agent` still has; without an agent, those of deleted owners, or what `writer`
    wrote.
    """
    keys = Keys(namespace)
    names = [key for memory_id in ids for key in (keys.memory(memory_id), keys.use(memory_id))]
    answer = await service.backend.write(
        "rm1_delete",
        [keys.audit, keys.counters, keys.chores, keys.events, *names],
        ids=list(ids),
        agent=agent,
        owners=list(owners),
        writer=writer,
        since=since,
        same_prefix=keys.same_prefix,
        audit=audit,
        audited_call=audited_call,
    )
    service.quotas.forget(namespace)
    for chore in answer["long"]:
        await settle_or_tell(service, namespace, chore)
    return len(answer["deleted"])
