"""Registering agents, their heartbeats, and unregistering them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from memory_core.errors import (
    Conflict,
    Forbidden,
    InvalidArgument,
    MemoryServiceError,
    NotFound,
    StoreFull,
    after_write,
    echo,
)
from memory_core.records import offer_proof, owners, redis_time
from memory_core.records.agent import Agent, AgentStatus, AgentType, load_agent, load_agents, profile_vector
from memory_core.records.authority import Effect
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.names import NAME_PATTERN, SEPARATOR, check_name, split_labels
from memory_core.records.task_kind import TaskKind
from memory_core.records.times import to_iso
from memory_core.records.vectors import to_stored
from memory_core.redis_client import Client
from memory_core.settings.groups import DAY
from memory_core.settings.settings import Settings
from memory_core.slices import slices
from memory_server.contract import cursors, validation
from memory_server.contract.agents import (
    AgentAnswer,
    AgentListAnswer,
    AgentView,
    Change,
    HeartbeatAnswer,
    RegisterAnswer,
    UnregisterAnswer,
)
from memory_server.contract.answer import most_fitting
from memory_server.contract.task_arguments import (
    HeartbeatArguments,
    ListAgentsArguments,
    RegisterArguments,
    UnregisterArguments,
)
from memory_server.contract.tasks import PendingAnswer
from memory_server.contract.tokens import DEFAULT_MAX_TOKENS
from memory_server.engine.presence import AgentSession
from memory_server.engine.principals import SIGNING_ATTEMPTS, prove_owner, read_owners, resolve
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.events.waiting import unread
from memory_server.index import queries
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters
from memory_server.tasks.leases import check_exists, not_registered, resume_leases
from memory_server.tasks.lifecycle import DESCRIPTION_BYTES, check_capabilities
from memory_server.tasks.routing import dispatch, dispatch_soon, end_reserved, write_in_slices
from memory_server.tasks.services import TaskServices

_EMBED_SECONDS = 2.0
_FIRST_PROFILE: dict[str, Any] = {
    "type": AgentType.CUSTOM,
    "capabilities": "",
    "context_window": 0,
    "max_tasks": 1,
    "heartbeat_seconds": 600,
    "description": "",
}
"""What an agent gets that its first registration leaves out."""
_METRICS_BYTES = 16_384
_MAX_LEASE_TOKENS = 1000
RENEWED_AT_ONCE = 250
"""Leases that one Function call renews, so that Redis never stalls."""


async def register_agent(service: TaskServices, request: RequestContext, args: RegisterArguments) -> RegisterAnswer:
    """Register the caller or update its registration, and assign waiting tasks to it. Omitted fields keep their values.

    Raises:
        InvalidArgument: a capability or the description is not valid.
    """
    caller = request.caller
    given = _given_profile(args)
    keys = (await service.namespaces.get(caller.namespace)).keys
    known = await service.backend.read(lambda client: load_agent(client, keys, caller.agent))
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if known is None or not {"description", "capabilities"}.isdisjoint(fields):
        text = fields.get("description", known.description if known else "")
        labels = (
            split_labels(fields["capabilities"]) if "capabilities" in fields else known.capabilities if known else ()
        )
        fields["profile"] = await _embed(service, caller, self_description(text, labels))
    candidate = new_id()
    for _ in range(SIGNING_ATTEMPTS):
        answer = await _write(
            service,
            request,
            "rm1_agent_register",
            "register_agent",
            repeatable=True,
            candidate=candidate,
            proof=await prove_owner(service.backend, caller.namespace, caller.agent, candidate),
            fields=_pairs(fields),
            defaults=_pairs({name: value for name, value in _FIRST_PROFILE.items() if name not in fields}),
        )
        if answer["status"] != "changed":
            break
    else:
        raise Conflict("somebody keeps leaving your name", hint="try again")
    service.rosters.pop(caller.namespace, None)
    with after_write():
        await dispatch(service, caller.namespace)
        agent = await service.backend.read(lambda client: load_agent(client, keys, caller.agent))
        if agent is None:
            raise not_registered(caller)
        pending = await _pending(service.backend, keys, agent)
        work = await _work_of(service, request, agent)
    seconds = agent.heartbeat_seconds
    return RegisterAnswer(
        agent=AgentView.of(agent, redis_time.now()).brief(),
        again=answer["again"],
        changed=_changes(answer.get("before") or {}, agent) if answer["again"] else {},
        pending_tasks=pending,
        heartbeat_seconds=seconds,
        work=work,
        partial=bool(work and work.partial),
        reason=work.reason if work else None,
        keep_alive=f"Any call shows that you are there, and renews the leases of this session. After {seconds:g} s "
        "without one you get no new tasks; what you hold stays yours until its lease ends.",
    )


def _given_profile(args: RegisterArguments) -> dict[str, Any]:
    """Return the fields of an agent's record that the call gives; None for the others."""
    text, labels = args.description, args.capabilities
    return {
        "type": args.agent_type,
        "capabilities": None if labels is None else SEPARATOR.join(check_capabilities(labels)),
        "context_window": args.context_window,
        "max_tasks": args.max_tasks,
        "heartbeat_seconds": args.heartbeat_seconds,
        "description": validation.check_text(text, "description", DESCRIPTION_BYTES) if text else text,
    }


def _changes(before: dict[str, Any], agent: Agent) -> dict[str, Change]:
    """Compare an agent with the stored fields from before its registration; names as the answer has them."""
    pairs = {
        "agent_type": (before.get("type"), agent.type.value),
        "capabilities": (list(split_labels(before.get("capabilities"))), list(agent.capabilities)),
        "context_window": (_number(before.get("context_window")), agent.context_window),
        "max_tasks": (_number(before.get("max_tasks")), agent.max_tasks),
        "heartbeat_seconds": (_number(before.get("heartbeat_seconds")), agent.heartbeat_seconds),
        "description": (before.get("description", ""), agent.description),
        "status": (before.get("status"), agent.status.value),
    }
    return {name: Change.of(old, new) for name, (old, new) in pairs.items() if old != new}


def _number(text: str | None) -> float | None:
    number = None if text is None else float(text)
    return int(number) if number is not None and number.is_integer() else number


async def _work_of(service: TaskServices, request: RequestContext, agent: Agent) -> PendingAnswer | None:
    """Return what an agent holds, and give this session what ended ones held; None if it holds nothing."""
    service.presence.renew(AgentSession(request.caller.namespace, agent.name, request.session))
    if not agent.leased_tasks or not request.may(Effect.WORK_ON_TASKS):
        return None
    return await resume_leases(service, request)


async def unregister_agent(
    service: TaskServices, request: RequestContext, args: UnregisterArguments
) -> UnregisterAnswer:
    """Remove the caller from the registry. Its tasks go to other agents, those only for it and its grants end.

    Its memories are kept without a reader or deleted. A transfer keeps them, and offers them to another agent.

    Raises:
        InvalidArgument: `transfer_to` is missing, unexpected or the caller. NotFound: an agent is not registered.
        Forbidden: an admin who acts for the agent would hand its memories to another.
        Conflict: no further offer can wait for the receiver.
    """
    caller = request.caller
    if args.memories == "transfer" and request.as_reader() is not request:
        message = f"only {caller.agent} itself may hand its memories to another agent"
        raise Forbidden(message, hint="use memories=keep or memories=delete")
    if (args.memories == "transfer") != (args.transfer_to is not None):
        raise InvalidArgument("memories=transfer and transfer_to need each other", hint="give both or neither")
    if args.transfer_to == caller.agent:
        raise InvalidArgument("transfer_to is the agent that leaves", hint="name another, or keep the memories")
    target = check_name(args.transfer_to, "transfer_to") if args.transfer_to else ""
    await check_exists(service.backend, caller)
    keys = (await service.namespaces.get(caller.namespace)).keys
    count = await _count_memories(service, request)
    offer, revoked = offer_of(service.settings, count), 0
    for _ in range(SIGNING_ATTEMPTS):
        proofs = await _prove_leaving(service.backend, caller, args.memories, target, offer)
        answer = {"status": "more"}
        while answer["status"] == "more":
            answer = await _write(
                service,
                request,
                "rm1_agent_unregister",
                "unregister_agent",
                memories=args.memories,
                target=target,
                **offer,
                **proofs,
            )
            revoked += answer.get("grants", 0)
        if answer["status"] != "changed":
            break
    else:
        raise Conflict("your memories keep being transferred by others", hint="try again")
    raise_for_offer(answer["status"], caller.agent, target)
    service.rosters.pop(caller.namespace, None)
    for owner in answer["owners"] if args.memories == "delete" else ():
        service.vault.forget(caller.namespace, owner)
    with after_write():
        reason = f"{caller.agent} was unregistered"
        released = await write_in_slices(
            service, caller.namespace, "rm1_agent_release", keys.agent(caller.agent), agent=caller.agent, reason=reason
        )
        ended = released.ended + await end_reserved(service, caller.namespace, caller.agent)
    dispatch_soon(service, caller.namespace)
    return UnregisterAnswer(
        tasks_reassigned=released.taken,
        tasks_ended=ended,
        memories_affected=count,
        grants_revoked=revoked,
        offer_id=offer["id"] if args.memories == "transfer" else None,
    )


def offer_of(settings: Settings, count: int) -> dict[str, Any]:
    """Return what a Function needs to offer memories: `count` is shown to the receiver."""
    return {"id": new_id(), "offer_seconds": settings.limits.offer_days * DAY, "count": count}


def raise_for_offer(status: str, name: str, target: str) -> None:
    """Raise NotFound or Conflict if a Function refused to offer memories."""
    match status:
        case "unknown_agent":
            raise _unknown_agent(target)
        case "offer_waits":
            message = f"a transfer from {echo(name)} waits for {echo(target)} already"
            raise Conflict(message, hint="keep the memories, or choose another receiver")
        case "too_many_offers":
            message = f"256 offers wait for {echo(target)}, the limit for one agent"
            raise Conflict(message, hint="keep the memories, or choose another receiver")
        case _:
            return


async def _prove_leaving(
    backend: Backend, caller: Caller, memories: str, target: str, offer: dict[str, Any]
) -> dict[str, Any]:
    """Sign the owner ids of an agent as kept ones, or as tombstones, and the offer of a transfer."""
    key, namespace, name = Keys(caller.namespace).agent(caller.agent), caller.namespace, caller.agent
    row = await backend.read(lambda client: client.hmget(key, owners.FIELDS))
    genuine, known = owners.read(backend.integrity, namespace, name, row).all, owners.parse(row).owners
    if memories == "delete":
        return {"known": known, "proofs": owners.tombstones(backend.integrity, namespace, genuine)}
    proofs = {"known": known, "proofs": owners.kept_proofs(backend.integrity, namespace, name, genuine)}
    if memories == "transfer":
        proofs |= await prove_transfer(backend, namespace, name, target, genuine, offer)
    return proofs


async def prove_transfer(
    backend: Backend, namespace: str, name: str, target: str, genuine: Sequence[str], offer: dict[str, Any]
) -> dict[str, Any]:
    """Sign the offer of owner ids that passed their check, and each of them for the receiver. Empty without a key."""
    integrity, receiver = backend.integrity, await read_owners(backend, namespace, target)
    if not integrity.signs or not genuine:
        return {}
    fields = {
        "from": name,
        "to": target,
        "from_owner": genuine[-1],
        "to_owner": receiver.current or "",
        "kind": "o",
        "permission": "write",
        "note": "",
        "shown": str(offer["count"]),
    }
    ends = redis_time.now() + offer["offer_seconds"] + offer_proof.CLOCK_SECONDS
    return {
        "given": owners.proofs(integrity, namespace, target, genuine, receiver.since),
        "by_owner": genuine[-1],
        "to_owner": receiver.current,
        "mac": offer_proof.sign(integrity, namespace, offer["id"], fields, ends),
    }


async def _write(
    service: TaskServices, request: RequestContext, function: str, op: str | None, *, target: str = "", **fields: Any
) -> dict[str, Any]:
    """Call a Function on the caller's record, with an audit entry of `op`; without, the gate records the call."""
    caller, keys = request.caller, Keys(request.caller.namespace)
    await request.check_stale_credential()
    answer = await service.backend.write(
        function,
        [keys.agent(caller.agent)],
        prefix=keys.prefix,
        agent=caller.agent,
        target=target,
        session=request.session,
        audited_call=request.call,
        **({"audit": caller.audit(op, [target] if target else [])} if op else {}),
        **fields,
    )
    if answer.get("status") == "unknown":
        raise not_registered(caller)
    return answer


async def heartbeat(service: TaskServices, request: RequestContext, args: HeartbeatArguments) -> HeartbeatAnswer:
    """Record a heartbeat, and renew the leases whose tokens the caller presents.

    Raises:
        NotFound: the caller is not registered. InvalidArgument: `status` is dead, or there are too many tokens.
    """
    caller, lease_tokens = request.caller, args.lease_tokens or []
    if args.status is AgentStatus.DEAD:
        raise InvalidArgument("agents cannot set status dead", hint="use active, busy, idle or draining")
    if len(lease_tokens) > _MAX_LEASE_TOKENS:
        raise InvalidArgument(f"{len(lease_tokens)} lease_tokens; at most {_MAX_LEASE_TOKENS} are allowed")
    metrics = validation.check_json(args.metrics, "metrics", _METRICS_BYTES)
    await check_exists(service.backend, caller)
    fields, tokens = {"status": args.status, "load": args.load}, list(dict.fromkeys(lease_tokens))
    renewed, lost, reason = await _beat_in_slices(service, request, fields, metrics, tokens)
    if args.status:
        service.rosters.pop(caller.namespace, None)
    dispatch_soon(service, caller.namespace)
    keys = Keys(caller.namespace)
    with after_write():
        agent = await service.backend.read(lambda client: load_agent(client, keys, caller.agent))
        pending = await _pending(service.backend, keys, agent) if agent else 0
        is_own = request.as_reader() is request
        missing = request.missing("unread events are", Effect.SEE_OWN) if is_own else None
        events = await unread(service, request) if is_own and not missing else None
    return HeartbeatAnswer(
        leases_renewed={_task_of(token): to_iso(float(until)) or "" for token, until in renewed},
        leases_lost=[_task_of(token) for token in lost],
        pending_tasks=pending,
        unread_events=events,
        partial=bool(missing or reason),
        reason="; ".join(filter(None, [missing, reason])) or None,
    )


async def _beat_in_slices(
    service: TaskServices, request: RequestContext, fields: dict[str, Any], metrics: str | None, tokens: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str], str | None]:
    """Record a heartbeat. Returns the renewed tokens with their ends, the lost ones, and what was not kept."""
    renewed, lost, reason = list[tuple[str, str]](), list[str](), None
    for part in list(slices(tokens, RENEWED_AT_ONCE)) or [[]]:
        answer, unkept = await _beat(service, request, fields, metrics, part)
        renewed += answer["renewed"]
        lost += answer["lost"]
        reason = reason or unkept
    return renewed, lost, reason


async def _beat(
    service: TaskServices,
    request: RequestContext,
    fields: dict[str, Any],
    metrics: str | None,
    tokens: Sequence[str],
) -> tuple[dict[str, Any], str | None]:
    """Write a heartbeat; on a full Redis without its metrics. Returns the answer, and what was not kept."""
    function, op = "rm1_agent_heartbeat", "update_agent_heartbeat"
    try:
        kept: dict[str, Any] = {"fields": _pairs({**fields, "metrics": metrics}), "reports": metrics is not None}
        return await _write(service, request, function, op, repeatable=True, tokens=tokens, **kept), None
    except StoreFull as error:
        brief: dict[str, Any] = {"repeatable": True, "fields": _pairs(fields), "tokens": tokens}
        answer = await _write(service, request, f"{function}_brief", None, **brief)
        return answer, f"the metrics were not kept: {error.message}" if metrics else None


def _pairs(fields: dict[str, Any]) -> list[Any]:
    return [part for name, value in fields.items() if value is not None for part in (name, value)]


async def get_agent(backend: Backend, caller: Caller, name: str) -> AgentAnswer:
    """Return one registered agent.

    Raises:
        NotFound: it is not registered.
    """
    found: Agent | None = None
    if re.fullmatch(NAME_PATTERN, name):
        found = await backend.read(lambda client: load_agent(client, Keys(caller.namespace), name))
    if found is None:
        raise _unknown_agent(name)
    return AgentAnswer(agent=AgentView.of(found, redis_time.now()))


async def list_agents(
    service: TaskServices, caller: Caller, args: ListAgentsArguments, most: int = DEFAULT_MAX_TOKENS
) -> AgentListAnswer:
    """List registered agents by type and by capabilities, of which they must have all. 0 as the most tokens gives all.

    Raises InvalidArgument for a cursor of another list.
    """
    which = cursors.list_of("list_agents", caller.namespace, caller.agent, args.model_dump(mode="json"))
    after = None if args.cursor is None else cursors.read(args.cursor, which)
    required, now = set(check_capabilities(args.capabilities or ())), redis_time.now()
    agents = await service.backend.read(lambda client: load_agents(client, Keys(caller.namespace)))
    chosen = [
        agent
        for agent in agents
        if (not args.agent_types or agent.type in args.agent_types)
        and required <= set(agent.capabilities)
        and (agent.is_alive(now) or not args.alive_only)
    ]
    views = [AgentView.of(agent, now) for agent in sorted(chosen, key=lambda found: found.name)]
    if not most:
        return AgentListAnswer(agents=views, total=len(views))
    left = [view.brief() for view in views if after is None or view.agent_id > after]

    def of_first(number: int) -> AgentListAnswer:
        cursor = cursors.write(which, left[number - 1].agent_id) if 0 < number < len(left) else None
        return AgentListAnswer(agents=left[:number], next_cursor=cursor, total=len(views))

    return of_first(most_fitting(len(left), most, lambda number: of_first(number).tokens(most)))


def self_description(description: str, capabilities: Sequence[str]) -> str:
    """Return the text of an agent's profile, which is embedded for routing."""
    return ". ".join(filter(None, [description, ", ".join(capabilities)]))


def _unknown_agent(name: str) -> NotFound:
    return NotFound(f"no agent {echo(name)} is registered here", hint="see list_agents")


async def _embed(service: TaskServices, caller: Caller, text: str) -> bytes:
    """Embed an agent's profile; empty without a text or without an embedding."""
    with suppress(MemoryServiceError):
        if text:
            model = await service.models.current(caller.namespace)
            (vector,) = await service.embeddings.embed([text], caller, model=model, wait=_EMBED_SECONDS)
            return profile_vector(model, to_stored(vector, model))
    return b""


async def _pending(backend: Backend, keys: Keys, agent: Agent) -> int:
    """Count the tasks that wait for an agent: assigned and not leased, or queued and within its abilities."""

    async def fetch(client: Client) -> int:
        kinds = await client.hgetall(keys.kinds)
        pipe = client.pipeline(transaction=False)
        for name, spec in kinds.items():
            if agent.is_able(TaskKind.parse(spec)):
                pipe.zcard(keys.backlog(name.decode()))
        return sum(await pipe.execute())

    return agent.open_tasks - agent.leased_tasks + await backend.read(fetch)


async def _count_memories(service: TaskServices, request: RequestContext) -> int:
    principal = await resolve(service.backend, request)
    if not principal.owners:
        return 0
    keys, timeout = Keys(principal.namespace), service.settings.search_timeout_ms
    readable = build.readable(principal, ResolvedFilters(include_archive=True), redis_time.now())
    own = build.owned(build.memories(readable), principal.owners)
    return await service.namespaces.search(keys.namespace, lambda client: queries.count(client, keys, own, timeout))


def _task_of(token: str) -> str:
    return token.partition(".")[0][:64]
