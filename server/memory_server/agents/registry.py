"""The registry of agents: who they are, that they live, and what becomes of what they leave."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from memory_core.errors import InvalidArgument, MemoryServiceError, NotFound, echo
from memory_core.records import redis_time
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
from memory_server.engine.backend import Backend, after_write
from memory_server.engine.principals import resolve
from memory_server.engine.request import Caller, RequestContext
from memory_server.events.waiting import unread
from memory_server.index import queries
from memory_server.index import query as build
from memory_server.index.filters import ResolvedFilters
from memory_server.tasks.dispatch import dispatch, dispatch_soon
from memory_server.tasks.leases import not_registered
from memory_server.tasks.lifecycle import DESCRIPTION_BYTES, capabilities
from memory_server.tasks.services import TaskServices

_EMBED_SECONDS = 2.0
_METRICS_BYTES = 16_384
_MOST_TOKENS = 1000


async def register_agent(service: TaskServices, request: RequestContext, args: RegisterArguments) -> RegisterAnswer:
    """Register the caller, or change what is registered, and hand it waiting work that it can do.

    Raises:
        InvalidArgument: a capability or the description is not valid.
    """
    able = capabilities(args.capabilities or ())
    text = args.description and validation.check_text(args.description, "description", DESCRIPTION_BYTES)
    prepared = await service.namespaces.get(request.caller.namespace)
    keys, candidate = prepared.keys, new_id()
    vector = await _embed(service, request.caller, self_description(text, able))
    fields: dict[str, Any] = {
        "type": args.agent_type,
        "capabilities": SEPARATOR.join(able),
        "context_window": args.context_window,
        "max_tasks": args.max_tasks,
        "heartbeat_seconds": args.heartbeat_seconds,
        "description": text,
        "profile": vector,
    }
    answer = await service.backend.write(
        "rm1_agent_register",
        [keys.agent(request.caller.agent)],
        repeatable=True,
        prefix=keys.prefix,
        agent=request.caller.agent,
        candidate=candidate,
        fields=[part for pair in fields.items() for part in pair],
        audited_call=request.call,
        audit=request.caller.audit("register_agent"),
    )
    service.rosters.pop(request.caller.namespace, None)
    with after_write():
        await dispatch(service, request.caller.namespace)
        agent = await service.backend.read(lambda client: load_agent(client, keys, request.caller.agent))
        if agent is None:
            raise not_registered(request.caller)
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
    """Take the caller off the registry; its tasks go to others and its grants end.

    Raises:
        InvalidArgument: `transfer_to` is missing, needless or the caller. NotFound: an agent is not registered.
    """
    if (args.memories == "transfer") != (args.transfer_to is not None):
        raise InvalidArgument("transfer_to goes with memories=transfer, and only with it", hint="name who gets them")
    if args.transfer_to == request.caller.agent:
        raise InvalidArgument("transfer_to is the agent that leaves", hint="name another, or keep the memories")
    target = check_name(args.transfer_to, "transfer_to") if args.transfer_to else ""
    keys = (await service.namespaces.get(request.caller.namespace)).keys
    count = await _count_memories(service, request)
    answer = await service.backend.write(
        "rm1_agent_unregister",
        [keys.agent(request.caller.agent)],
        prefix=keys.prefix,
        agent=request.caller.agent,
        memories=args.memories,
        target=target,
        audited_call=request.call,
        audit=request.caller.audit("unregister_agent", [target] if target else []),
    )
    if answer["status"] == "unknown":
        raise not_registered(request.caller)
    if answer["status"] == "unknown_target":
        raise NotFound(f"no agent {echo(target)} is registered here", hint="see list_agents")
    service.rosters.pop(request.caller.namespace, None)
    for owner in answer["owners"] if args.memories == "delete" else ():
        service.vault.forget(request.caller.namespace, owner)
    with after_write():
        moved = await release(service, request.caller.namespace, request.caller.agent)
    dispatch_soon(service, request.caller.namespace)
    return UnregisterAnswer(tasks_reassigned=moved, memories_affected=count, grants_revoked=answer["grants"])


async def release(service: TaskServices, namespace: str, name: str) -> int:
    """Give all that an agent has in hand to others, slice by slice; give how many tasks that were."""
    keys, moved, more = Keys(namespace), 0, True
    while more:
        answer = await service.backend.write(
            "rm1_agent_release",
            [keys.agent(name)],
            repeatable=True,
            prefix=keys.prefix,
            agent=name,
            reason=f"{name} was unregistered",
            keep=service.settings.tasks.keep_seconds,
        )
        moved, more = moved + answer["taken"], answer["more"]
    return moved


async def heartbeat(service: TaskServices, request: RequestContext, args: HeartbeatArguments) -> HeartbeatAnswer:
    """Note a sign of life, and renew the leases whose tokens the caller presents.

    Raises:
        NotFound: the caller is not registered. InvalidArgument: `status` is not for agents to say, too many tokens.
    """
    lease_tokens = args.lease_tokens or []
    if args.status is AgentStatus.DEAD:
        raise InvalidArgument("status dead is not for agents to say", hint="active, busy, idle or draining")
    if len(lease_tokens) > _MOST_TOKENS:
        raise InvalidArgument(f"{len(lease_tokens)} lease_tokens; at most {_MOST_TOKENS} are allowed")
    metrics = validation.check_json(args.metrics, "metrics", _METRICS_BYTES)
    said = {"status": args.status, "load": args.load, "metrics": metrics}
    keys = Keys(request.caller.namespace)
    answer = await service.backend.write(
        "rm1_agent_heartbeat",
        [keys.agent(request.caller.agent)],
        repeatable=True,
        prefix=keys.prefix,
        agent=request.caller.agent,
        fields=[part for name, value in said.items() if value is not None for part in (name, value)],
        tokens=list(dict.fromkeys(lease_tokens)),
        audited_call=request.call,
        audit=request.caller.audit("update_agent_heartbeat"),
    )
    if answer["status"] == "unknown":
        raise not_registered(request.caller)
    if args.status:
        service.rosters.pop(request.caller.namespace, None)
    dispatch_soon(service, request.caller.namespace)
    with after_write():
        agent = await service.backend.read(lambda client: load_agent(client, keys, request.caller.agent))
        pending = await _pending(service.backend, keys, agent) if agent else 0
        events = await unread(service, request)
    return HeartbeatAnswer(
        leases_renewed={_task_of(token): to_iso(float(until)) or "" for token, until in answer["renewed"]},
        leases_lost=[_task_of(token) for token in answer["lost"]],
        pending_tasks=pending,
        unread_events=events,
    )


async def get_agent(backend: Backend, caller: Caller, name: str) -> AgentAnswer:
    """Show one registered agent.

    Raises:
        NotFound: there is none.
    """
    keys = Keys(caller.namespace)
    found: Agent | None = None
    if re.fullmatch(NAME_PATTERN, name):
        found = await backend.read(lambda client: load_agent(client, keys, name))
    if found is None:
        raise NotFound(f"no agent {echo(name)} is registered here", hint="see list_agents")
    return AgentAnswer(agent=AgentView.of(found, redis_time.now()))


async def list_agents(service: TaskServices, caller: Caller, args: ListAgentsArguments) -> AgentListAnswer:
    """List registered agents of some types that can do all of some things."""
    keys, wanted, now = Keys(caller.namespace), set(capabilities(args.capabilities or ())), redis_time.now()
    agents = await service.backend.read(lambda client: load_agents(client, keys))
    chosen = [
        agent
        for agent in agents
        if (not args.agent_types or agent.type in args.agent_types)
        and wanted <= set(agent.capabilities)
        and (agent.is_alive(now) or not args.alive_only)
    ]
    return AgentListAnswer(agents=[AgentView.of(agent, now) for agent in sorted(chosen, key=lambda found: found.name)])


def self_description(description: str, able: Sequence[str]) -> str:
    """Give what is embedded of what an agent says of itself."""
    return ". ".join(filter(None, [description, ", ".join(able)]))


async def _embed(service: TaskServices, caller: Caller, text: str) -> bytes:
    """Give the vector of what an agent says of itself, or nothing where none can be had."""
    if not text:
        return b""
    try:
        model = await service.models.current(caller.namespace)
        (vector,) = await service.embeddings.embed([text], caller, model=model, wait=_EMBED_SECONDS)
        return profile_vector(model, to_bytes(vector))
    except MemoryServiceError:
        return b""


async def _pending(backend: Backend, keys: Keys, agent: Agent) -> int:
    """Count what waits for an agent: assigned and not leased, or queued for its like."""

    async def fetch(client: Client) -> int:
        kinds = await client.hgetall(keys.kinds)
        fit = [name.decode() for name, spec in kinds.items() if agent.is_able(TaskKind.parse(spec))]
        pipe = client.pipeline(transaction=False)
        for kind in fit:
            pipe.zcard(keys.backlog(kind))
        return sum(await pipe.execute()) if fit else 0

    return agent.open_tasks - agent.leased_tasks + await backend.read(fetch)


async def _count_memories(service: TaskServices, request: RequestContext) -> int:
    principal = await resolve(service.backend, request)
    if not principal.owners:
        return 0
    keys, timeout = Keys(request.caller.namespace), service.settings.search_timeout_ms
    readable = build.readable(principal, ResolvedFilters(include_archive=True), redis_time.now())
    own = build.owned(build.memories(readable), principal.owners)
    return await service.namespaces.search(
        request.caller.namespace, lambda client: queries.count(client, keys, own, timeout)
    )


def _task_of(token: str) -> str:
    return token.partition(".")[0][:64]
