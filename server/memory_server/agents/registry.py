"""Registering agents, their heartbeats, and unregistering them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from memory_core.errors import Conflict, InvalidArgument, MemoryServiceError, NotFound, echo
from memory_core.records import owners, redis_time
from memory_core.records.agent import Agent, AgentStatus, load_agent, load_agents, profile_vector
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.names import NAME_PATTERN, SEPARATOR, check_name
from memory_core.records.task_kind import TaskKind
from memory_core.records.times import to_iso
from memory_core.records.vectors import to_bytes
from memory_core.redis_client import Client
from memory_server.contract import validation
from memory_server.contract.agents import (
    AgentAnswer,
    AgentListAnswer,
    AgentView,
    HeartbeatAnswer,
    RegisterAnswer,
    UnregisterAnswer,
)
from memory_server.contract.task_arguments import (
    HeartbeatArguments,
    ListAgentsArguments,
    RegisterArguments,
    UnregisterArguments,
)
from memory_server.engine.principals import resolve
from memory_server.engine.redis_backend import Backend, after_write
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.events.waiting import unread
from memory_server.index import queries
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters
from memory_server.tasks.leases import not_registered
from memory_server.tasks.lifecycle import DESCRIPTION_BYTES, check_capabilities
from memory_server.tasks.routing import dispatch, dispatch_soon, write_in_slices
from memory_server.tasks.services import TaskServices

_EMBED_SECONDS = 2.0
_METRICS_BYTES = 16_384
_MAX_LEASE_TOKENS = 1000
_ATTEMPTS = 4
"""Tries to sign the owner ids of an agent that leaves, and to write it before they have changed."""


async def register_agent(service: TaskServices, request: RequestContext, args: RegisterArguments) -> RegisterAnswer:
    """Register the caller or update its registration, and assign waiting tasks to it.

    Raises:
        InvalidArgument: a capability or the description is not valid.
    """
    caller, capabilities = request.caller, check_capabilities(args.capabilities or ())
    text = args.description and validation.check_text(args.description, "description", DESCRIPTION_BYTES)
    keys = (await service.namespaces.get(caller.namespace)).keys
    fields: dict[str, Any] = {
        "type": args.agent_type,
        "capabilities": SEPARATOR.join(capabilities),
        "context_window": args.context_window,
        "max_tasks": args.max_tasks,
        "heartbeat_seconds": args.heartbeat_seconds,
        "description": text,
        "profile": await _embed(service, caller, self_description(text, capabilities)),
    }
    changed, candidate = [part for pair in fields.items() for part in pair], new_id()
    answer = await _write(
        service,
        request,
        "rm1_agent_register",
        "register_agent",
        repeatable=True,
        candidate=candidate,
        proof=owners.proof(service.backend.integrity, caller.namespace, caller.agent, candidate),
        fields=changed,
    )
    service.rosters.pop(caller.namespace, None)
    with after_write():
        await dispatch(service, caller.namespace)
        agent = await service.backend.read(lambda client: load_agent(client, keys, caller.agent))
        if agent is None:
            raise not_registered(caller)
        pending = await _pending(service.backend, keys, agent)
    seconds = args.heartbeat_seconds
    return RegisterAnswer(
        agent=AgentView.of(agent, redis_time.now()),
        again=answer["again"],
        pending_tasks=pending,
        heartbeat_seconds=seconds,
        keep_alive=f"Call update_agent_heartbeat at least every {seconds:g} s with the lease_tokens you hold; "
        f"after {2 * seconds:g} s of silence your tasks go to others.",
    )


async def unregister_agent(
    service: TaskServices, request: RequestContext, args: UnregisterArguments
) -> UnregisterAnswer:
    """Remove the caller from the registry. Its tasks go to other agents and its grants end.

    Raises:
        InvalidArgument: `transfer_to` is missing, unexpected or the caller. NotFound: an agent is not registered.
    """
    caller = request.caller
    if (args.memories == "transfer") != (args.transfer_to is not None):
        raise InvalidArgument("memories=transfer and transfer_to need each other", hint="give both or neither")
    if args.transfer_to == caller.agent:
        raise InvalidArgument("transfer_to is the agent that leaves", hint="name another, or keep the memories")
    target = check_name(args.transfer_to, "transfer_to") if args.transfer_to else ""
    keys = (await service.namespaces.get(caller.namespace)).keys
    count = await _count_memories(service, request)
    for _ in range(_ATTEMPTS):
        proofs = await _prove_leaving(service.backend, caller, args.memories, target)
        answer = await _write(
            service,
            request,
            "rm1_agent_unregister",
            "unregister_agent",
            memories=args.memories,
            target=target,
            **proofs,
        )
        if answer["status"] != "changed":
            break
    else:
        raise Conflict("your memories keep being transferred by others", hint="try again")
    if answer["status"] == "unknown_target":
        raise _unknown_agent(target)
    service.rosters.pop(caller.namespace, None)
    for owner in answer["owners"] if args.memories == "delete" else ():
        service.vault.forget(caller.namespace, owner)
    with after_write():
        reason = f"{caller.agent} was unregistered"
        moved = await write_in_slices(
            service, caller.namespace, "rm1_agent_release", keys.agent(caller.agent), agent=caller.agent, reason=reason
        )
    dispatch_soon(service, caller.namespace)
    return UnregisterAnswer(tasks_reassigned=moved, memories_affected=count, grants_revoked=answer["grants"])


async def _prove_leaving(backend: Backend, caller: Caller, memories: str, target: str) -> dict[str, Any]:
    """Sign the owner ids of an agent for the one that receives them, or their tombstones. None without a key."""
    key, namespace = Keys(caller.namespace).agent(caller.agent), caller.namespace
    row = await backend.read(lambda client: client.hmget(key, owners.FIELDS))
    genuine, (_, known, _) = owners.read(backend.integrity, namespace, caller.agent, row).all, owners.parse(row)
    if memories == "transfer":
        return {"known": known, "proofs": owners.proofs(backend.integrity, namespace, target, genuine)}
    return {"known": known, "proofs": owners.tombstones(backend.integrity, namespace, genuine)}


async def _write(
    service: TaskServices, request: RequestContext, function: str, op: str, *, target: str = "", **fields: Any
) -> dict[str, Any]:
    caller, keys = request.caller, Keys(request.caller.namespace)
    answer = await service.backend.write(
        function,
        [keys.agent(caller.agent)],
        prefix=keys.prefix,
        agent=caller.agent,
        target=target,
        audited_call=request.call,
        audit=caller.audit(op, [target] if target else []),
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
    fields = {"status": args.status, "load": args.load, "metrics": metrics}
    answer = await _write(
        service,
        request,
        "rm1_agent_heartbeat",
        "update_agent_heartbeat",
        repeatable=True,
        fields=[part for name, value in fields.items() if value is not None for part in (name, value)],
        tokens=list(dict.fromkeys(lease_tokens)),
    )
    if args.status:
        service.rosters.pop(caller.namespace, None)
    dispatch_soon(service, caller.namespace)
    keys = Keys(caller.namespace)
    with after_write():
        agent = await service.backend.read(lambda client: load_agent(client, keys, caller.agent))
        pending = await _pending(service.backend, keys, agent) if agent else 0
        events = await unread(service, request)
    return HeartbeatAnswer(
        leases_renewed={_task_of(token): to_iso(float(until)) or "" for token, until in answer["renewed"]},
        leases_lost=[_task_of(token) for token in answer["lost"]],
        pending_tasks=pending,
        unread_events=events,
    )


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


async def list_agents(service: TaskServices, caller: Caller, args: ListAgentsArguments) -> AgentListAnswer:
    """List registered agents by type and by capabilities, of which they must have all."""
    required, now = set(check_capabilities(args.capabilities or ())), redis_time.now()
    agents = await service.backend.read(lambda client: load_agents(client, Keys(caller.namespace)))
    chosen = [
        agent
        for agent in agents
        if (not args.agent_types or agent.type in args.agent_types)
        and required <= set(agent.capabilities)
        and (agent.is_alive(now) or not args.alive_only)
    ]
    return AgentListAnswer(agents=[AgentView.of(agent, now) for agent in sorted(chosen, key=lambda found: found.name)])


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
            return profile_vector(model, to_bytes(vector))
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
