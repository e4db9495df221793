"""Sharing memories with other agents, and revoking that: one write, however many memories.

The Functions in redis/functions/30_grants.lua and the two files after it enforce all rules on who may share what.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from memory_core.errors import Conflict, InvalidArgument, MemoryServiceError, NotFound, echo
from memory_core.records import redis_time
from memory_core.records.authority import Effect
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys, digest
from memory_core.records.names import SEPARATOR, check_label, check_name
from memory_core.records.times import to_iso
from memory_core.settings.groups import DAY
from memory_core.settings.settings import Settings
from memory_server.contract.sharing import RevokeAnswer, ShareAnswer, ShareArguments, covered
from memory_server.contract.validation import check_id, check_tags, check_text
from memory_server.engine.principals import SIGNING_ATTEMPTS, resolve
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.index import queries
from memory_server.index import query_builder as build
from memory_server.search.services import SearchServices
from memory_server.sharing.proofs import sign_share

_MAX_IDS = 100
_MAX_SECONDS = 100 * 365 * 86_400
_NOTE_BYTES = 1024
_PATIENCE_SECONDS = 5.0
"""How long a revoke waits for reads that began before it."""


@dataclass(frozen=True, slots=True)
class Selector:
    """A selector for the Function: the letter and the values of its scope tokens, and the values to display."""

    kind: str
    values: list[str]
    shown: list[str]

    @classmethod
    def of(cls, kind: str, shown: Sequence[str]) -> Selector:
        """Make the selector that a grant shows as these values."""
        return cls(kind, [digest(value) for value in shown] if kind in ("c", "t") else list(shown), list(shown))

    @property
    def covers(self) -> str:
        match self.kind:
            case "c":
                return covered(context=self.shown[0])
            case "t":
                return covered(tags=self.shown)
            case "y":
                return covered(types=self.shown)
            case _:
                return covered(memories=len(self.shown))

    @property
    def digest(self) -> str:
        """Identifies the selector."""
        return digest(SEPARATOR.join([self.kind, *sorted(self.values)]))


async def share_context(service: SearchServices, request: RequestContext, args: ShareArguments) -> ShareAnswer:
    """Grant an agent access to all present and future memories that a selector covers, including private ones.

    Sharing the same selector with the same agent again replaces the permission, the end and the note of the grant. If
    the agent may no longer write, what it passed on ends too.

    Raises:
        InvalidArgument: a value is not valid, or the target is the caller.
        NotFound: no such agent, or no such memory that the caller may share.
        Conflict: the target has reached its limit of grants or offers.
    """
    return await _share(service, request, args, "share_context_with_agent")


async def share_back(
    service: SearchServices, request: RequestContext, args: ShareArguments, offer_id: str
) -> ShareAnswer:
    """Accept the offer of the other direction of a grant; what is given ends with that grant.

    Raises:
        NotFound: the offer or the grant is over. Conflict: the other agent has reached its limit of grants.
    """
    return await _share(service, request, args, "answer_offer", offer_id)


async def _share(
    service: SearchServices, request: RequestContext, args: ShareArguments, op: str, answers: str | None = None
) -> ShareAnswer:
    selector = _check(service.settings, request.caller, args)
    if not await service.backend.exists(request.caller.namespace):
        _raise_for({"status": "unknown_agent"}, args)
    await service.namespaces.get(request.caller.namespace)
    grant_id, offer_id = new_id(), new_id() if args.bidirectional else None
    for _ in range(SIGNING_ATTEMPTS):
        days = service.settings.limits.offer_days
        signed = await sign_share(
            service.backend,
            request,
            args,
            selector,
            grant=grant_id,
            offer=offer_id,
            offer_seconds=days * DAY,
            answers=answers is not None,
        )
        answer = await _in_slices(partial(_write_share, service, request, args, selector, op, answers, signed))
        if answer["status"] != "changed":
            break
        grant_id, offer_id = answer["id"], answer.get("offer") or offer_id
    else:
        raise Conflict("what you share keeps being changed by others", hint="try again")
    if answer["status"] == "no_offer":
        raise no_offer(answers or "")
    _raise_for(answer, args)
    await _shorten_passed_on(service.backend, request.caller.namespace, answer["id"], answer["cursor"])
    await service.inflight_reads.finished(request.caller.namespace, answer["touched"], _PATIENCE_SECONDS)
    return ShareAnswer(
        grant_id=answer["id"],
        target_agent=args.target_agent,
        permission=args.permission,
        covers=selector.covers,
        matches=await _matches(service, request, selector),
        expires_at=to_iso(float(answer["ends"])),
        offer_id=answer.get("offer"),
        accepted_offer=answer.get("accepted"),
    )


async def _matches(service: SearchServices, request: RequestContext, selector: Selector) -> int | None:
    """Count the grantor's own memories that a selector covers now; None for ids, and if Redis does not answer."""
    if selector.kind == "i" or not request.may(Effect.READ_MEMORIES):
        return None
    field = {"c": "context", "t": "tags", "y": "type"}[selector.kind]
    try:
        prepared = await service.namespaces.get(request.caller.namespace)
        principal = await resolve(service.backend, request)
        own = build.kept_by(principal.owners, redis_time.now())
        query = build.memories(build.without_sensitive(build.having(own, field, *selector.shown)))
        timeout = service.settings.search_timeout_ms
        return await service.namespaces.search(
            request.caller.namespace, lambda client: queries.count(client, prepared.keys, query, timeout)
        )
    except MemoryServiceError:
        return None  # the grant is in force all the same


async def _in_slices(write: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """Call a Function that ends grants until none is left to end. The answer names all that it touched."""
    touched, ended = set[str](), 0
    while True:
        answer = await write()
        touched, ended = touched | set(answer.get("touched", ())), ended + answer.get("grants", 0)
        if answer["status"] != "more":
            return answer | {"touched": sorted(touched), "grants": ended}


async def _shorten_passed_on(backend: Backend, namespace: str, grant_id: str, cursor: str) -> None:
    """Let what is passed on under a grant end no later than the grant."""
    keys = Keys(namespace)
    while cursor != "0":
        answer = await backend.write(
            "rm1_shorten_passed_on", [keys.counters], repeatable=True, prefix=keys.prefix, id=grant_id, cursor=cursor
        )
        cursor = answer["cursor"]


async def _write_share(
    service: SearchServices,
    request: RequestContext,
    args: ShareArguments,
    selector: Selector,
    op: str,
    answers: str | None,
    signed: dict[str, Any],
) -> dict[str, Any]:
    caller, keys = request.caller, Keys(request.caller.namespace)
    named = [answers] if answers else selector.values if selector.kind == "i" else []
    # The Function's argument `from` is a Python keyword.
    grantor: dict[str, Any] = {"from": caller.agent}
    return await service.backend.write(
        "rm1_share",
        [keys.audit, keys.counters, keys.agent(caller.agent), keys.agent(args.target_agent)],
        repeatable=answers is None,
        prefix=keys.prefix,
        to=args.target_agent,
        kind=selector.kind,
        values=selector.values,
        shown=selector.shown,
        selector=selector.digest,
        permission=args.permission,
        seconds=args.expires_in_seconds,
        offer_seconds=service.settings.limits.offer_days * DAY,
        answers=answers,
        note=args.note or "",
        audited_call=request.call,
        audit=caller.audit(op, named),
        **signed,
        **grantor,
    )


async def revoke_shared(service: SearchServices, request: RequestContext, grant_id: str) -> RevokeAnswer:
    """End a grant or an offer at once, and all grants that were passed on under it. Its receiver may decline it so.

    Returns when no earlier read in this process can still answer.

    Raises:
        NotFound: no such grant that the caller gave or holds.
    """
    answer = await _end(service, request, check_id(grant_id, "grant_id"), "revoke_shared_context")
    if answer["status"] != "revoked":
        message = f"no grant or offer {echo(grant_id)} that you gave or hold"
        raise NotFound(message, hint="get_shared_context lists yours; `redis-memory grants list` lists all")
    finished = await service.inflight_reads.finished(request.caller.namespace, answer["touched"], _PATIENCE_SECONDS)
    reason = None if finished else "calls that began before may still show it"
    return RevokeAnswer(grant_id=grant_id, grants_ended=answer["grants"], partial=not finished, reason=reason)


async def decline_offer(service: SearchServices, request: RequestContext, offer_id: str) -> None:
    """End an offer to the caller. Raises NotFound."""
    answer = await _end(service, request, offer_id, "answer_offer", answers=True)
    if answer["status"] != "revoked":
        raise no_offer(offer_id)


async def _end(
    service: SearchServices, request: RequestContext, grant_id: str, op: str, *, answers: bool = False
) -> dict[str, Any]:
    keys = Keys(request.caller.namespace)
    if not await service.backend.exists(keys.namespace):
        return {"status": "unknown"}
    return await _in_slices(
        partial(
            service.backend.write,
            "rm1_revoke",
            [keys.audit, keys.counters],
            repeatable=True,
            prefix=keys.prefix,
            id=grant_id,
            who=request.caller.agent,
            admin=request.caller.admin,
            answers=answers,
            audited_call=request.call,
            audit=request.caller.audit(op, [grant_id]),
        )
    )


def no_offer(offer_id: str) -> NotFound:
    """Return the error for unknown offers and for those of others."""
    return NotFound(f"no offer {echo(offer_id)} waits for you", hint="get_shared_context lists offers")


async def remove_expired(backend: Backend, namespace: str, most: int) -> None:
    """Remove expired grants and offers, which have no effect any more; `most` limits the calls of the Function."""
    keys = Keys(namespace)
    for _ in range(most):
        answer = await backend.write("rm1_expire_grants", [keys.grants_due], repeatable=True, prefix=keys.prefix)
        if not answer["more"]:
            return


def _check(settings: Settings, caller: Caller, args: ShareArguments) -> Selector:
    check_name(args.target_agent, "target_agent")
    if args.target_agent == caller.agent:
        raise InvalidArgument("target_agent is you", hint="your own memories are yours to read already")
    if args.expires_in_seconds is not None and not 1 <= args.expires_in_seconds <= _MAX_SECONDS:
        message = f"expires_in_seconds is {echo(args.expires_in_seconds)}; 1 to {_MAX_SECONDS} are allowed"
        raise InvalidArgument(message, hint="leave it out")
    if args.note is not None:
        check_text(args.note, "note", _NOTE_BYTES)
    if args.bidirectional and args.memory_ids is not None:
        message = "bidirectional needs context, tags or memory_types: the other agent has no memories with these ids"
        raise InvalidArgument(message, hint="leave bidirectional out")
    given = (args.memory_ids, args.context, args.tags, args.memory_types)
    if sum(value is not None for value in given) != 1 or not any(given):
        hint = "give memory_ids, context, tags or memory_types"
        raise InvalidArgument("exactly one selector is required, and it must not be empty", hint=hint)
    if args.memory_ids:
        ids = list(dict.fromkeys(check_id(memory_id) for memory_id in args.memory_ids))
        if len(ids) > _MAX_IDS:
            message = f"{len(ids)} memory_ids; at most {_MAX_IDS} are allowed in a grant"
            raise InvalidArgument(message, hint="share a context or a tag")
        return Selector.of("i", ids)
    if args.context:
        return Selector.of("c", [check_label(args.context, "context")])
    if args.tags:
        return Selector.of("t", check_tags(args.tags, settings))
    types = [memory_type.value for memory_type in dict.fromkeys(args.memory_types or ())]
    return Selector.of("y", types)


def _raise_for(answer: dict[str, Any], args: ShareArguments) -> None:
    target, fewer = echo(args.target_agent), "revoke one, or share a context or a tag instead of single memories"
    match answer["status"]:
        case "unknown_agent":
            raise NotFound(f"no agent {target} is registered here", hint="see list_agents")
        case "not_found":
            message = f"no memory {echo(answer['missing'])} that you may share"
            raise NotFound(message, hint="share your own, or ask its owner to share it")
        case "too_many_grants":
            raise Conflict(f"{target} holds 256 grants, the limit for one agent", hint=fewer)
        case "too_many_tokens":
            message = f"the grants to {target} would name more than 4096 memories, contexts, tags and types"
            raise Conflict(message, hint=fewer)
        case "too_many_of_pair":
            message = f"{target} holds 64 grants, 512 memories, contexts, tags and types, or 64 offers of yours"
            raise Conflict(f"{message}: the limit between two agents", hint=fewer)
        case "passed_on_too_often":
            message = "128 grants pass on one of these memories by its id, the limit"
            raise Conflict(message, hint="share a context or a tag, or ask its owner to share it")
        case "too_many_offers":
            raise Conflict(f"256 offers wait for {target}, the limit for one agent", hint="share without bidirectional")
        case _:
            return
