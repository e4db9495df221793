"""Chooses agents for tasks: ranks able agents, and assigns queued tasks to agents with free capacity."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from memory_core.errors import StoreFull
from memory_core.records import redis_time
from memory_core.records.agent import Agent, AgentStatus, TrackRecord, load_agents
from memory_core.records.damage import execute, or_none
from memory_core.records.keys import Keys
from memory_core.records.task import Task, TaskPriority, load_tasks, load_vectors
from memory_core.records.task_kind import TaskKind
from memory_core.records.vectors import Matrix, from_stored
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_server.contract.tasks import Suited
from memory_server.tasks.services import TaskServices

_BATCH = 32
_ASSIGNED_AT_ONCE = 8
"""Tasks that one Function call assigns: it reads the candidates of each, and blocks Redis meanwhile."""
_MAX_CANDIDATES = _ASSIGNED_AT_ONCE + 8
"""Each task of a call may fill up an agent, and a few more may have become busy."""
_MIN_DELAY_SECONDS = 0.01
_SECONDS_PER_AGENT = 0.0005
_ROSTER_SECONDS = 0.25
"""How long agents are cached for routing; the Functions check capacity again."""
_UNKNOWN_SPEED = 0.5


class Factors(NamedTuple):
    """What routing compares, each from 0 to 1; also their weights, which sum to 1."""

    free: float
    success: float
    speed: float
    closeness: float


_WEIGHTS = {
    TaskPriority.CRITICAL: Factors(free=0.15, success=0.40, speed=0.20, closeness=0.25),
    TaskPriority.HIGH: Factors(free=0.25, success=0.30, speed=0.20, closeness=0.25),
    TaskPriority.MEDIUM: Factors(free=0.35, success=0.25, speed=0.15, closeness=0.25),
    TaskPriority.LOW: Factors(free=0.50, success=0.15, speed=0.10, closeness=0.25),
}
"""Urgent tasks go to agents with a good record, the others to idle agents."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A task to route; `vector` has shape (dimension,), None while unknown."""

    kind: TaskKind
    type: str
    priority: TaskPriority
    vector: Matrix | None = None
    avoid: tuple[str, ...] = ()


async def roster(service: TaskServices, namespace: str) -> list[Agent]:
    """Return the agents of a namespace with their vectors, from a short-lived cache."""
    known = service.rosters.get(namespace)
    if known and known[0] > time.monotonic():
        return known[1]
    keys, model = Keys(namespace), await service.models.current(namespace)
    agents = await service.backend.read(lambda client: load_agents(client, keys, model=model))
    service.rosters[namespace] = (time.monotonic() + _ROSTER_SECONDS, agents)
    return agents


def note_assigned(service: TaskServices, namespace: str, name: str | None) -> None:
    """Count a newly assigned task in the cached roster."""
    _, agents = service.rosters.get(namespace, (0.0, []))
    for position, agent in enumerate(agents):
        if agent.name == name:
            agents[position] = replace(agent, open_tasks=agent.open_tasks + 1)


def able(agents: Iterable[Agent], kind: TaskKind, now: float) -> list[Agent]:
    """Keep living agents that accept work and are able to do a kind of task."""
    return [
        agent
        for agent in agents
        if agent.is_alive(now) and agent.status is not AgentStatus.DRAINING and agent.is_able(kind)
    ]


def rank(agents: Sequence[Agent], demand: Demand) -> list[Suited]:
    """Order able agents by how well they suit a task, best first; those that failed at it come last."""
    means = [_record(agent, demand.type).mean_ms for agent in agents]
    fastest = min((mean for mean in means if mean is not None), default=None)
    ranked = [_suited(agent, demand, fastest) for agent in agents]
    return sorted(ranked, key=lambda suited: (suited.agent in demand.avoid, -suited.score, suited.agent))


def _suited(agent: Agent, demand: Demand, fastest: float | None) -> Suited:
    record = _record(agent, demand.type)
    mean = record.mean_ms
    factors = Factors(
        free=agent.room / agent.max_tasks,
        success=(record.done + 1) / (record.done + record.failed + 2),
        speed=_UNKNOWN_SPEED if mean is None or fastest is None else (fastest + 1) / (mean + 1),
        closeness=_closeness(agent, demand.vector),
    )
    score = sum(weight * factor for weight, factor in zip(_WEIGHTS[demand.priority], factors, strict=True))
    rounded = {name: round(factor, 3) for name, factor in factors._asdict().items()}
    return Suited(agent=agent.name, score=round(score, 3), **rounded)


def _record(agent: Agent, task_type: str) -> TrackRecord:
    return agent.records.get(task_type, TrackRecord())


def _closeness(agent: Agent, vector: Matrix | None) -> float:
    """The best cosine between the task and the agent's description or a task that it completed."""
    if vector is None or agent.vectors is None or agent.vectors.shape[1:] != vector.shape:
        return 0.0  # a vector is missing, or the model has changed
    return min(max(float((agent.vectors @ vector).max()), 0.0), 1.0)


def dispatch_soon(service: TaskServices, namespace: str) -> None:
    """Dispatch after a short delay, once for all requests in it. More agents cost more, so they delay it longer."""
    _, agents = service.rosters.get(namespace, (0.0, ()))
    seconds = _MIN_DELAY_SECONDS + _SECONDS_PER_AGENT * len(agents)
    service.soon(("dispatch", namespace), lambda: dispatch(service, namespace), seconds)


async def dispatch(service: TaskServices, namespace: str) -> None:
    """Assign the first queued tasks to agents with free capacity."""
    keys, now = Keys(namespace), redis_time.now()
    kinds = await service.backend.read(lambda client: client.hgetall(keys.kinds))
    if not kinds:
        return
    service.rosters.pop(namespace, None)
    team = await roster(service, namespace)
    # What cannot be read is left to the claims, which repair it.
    specs = {raw.decode(): or_none(lambda spec=spec: TaskKind.parse(spec)) for raw, spec in kinds.items()}
    parsed = {name: kind for name, kind in specs.items() if kind}
    for name in {kind.only for kind in parsed.values()} - {"", *(agent.name for agent in team)}:
        await end_reserved(service, namespace, name)
    open_kinds = {name: fit for name, kind in parsed.items() if (fit := _free(able(team, kind, now)))}
    if not open_kinds:
        return
    tasks = await service.backend.read(lambda client: _first_queued(client, keys, list(open_kinds)))
    model = await service.models.current(namespace)
    task_ids = [task.id for task in tasks]
    vectors = await service.backend.read(lambda client: load_vectors(client, keys, task_ids, model))
    known = [(task, vector) for task, vector in zip(tasks, vectors, strict=True) if task.kind.id in open_kinds]
    for part in slices(known, _ASSIGNED_AT_ONCE):
        items: list[dict[str, Any]] = []
        for task, vector in part:
            row = from_stored(vector, model.dimension) if vector else None
            demand = Demand(task.kind, task.type, task.priority, row, task.avoid)
            ranked = rank(_free(able(team, task.kind, now)), demand)
            items.append({"id": task.id, "candidates": [suited.agent for suited in ranked[:_MAX_CANDIDATES]]})
        answer = await service.backend.write(
            "rm1_task_assign", [keys.leases], repeatable=True, prefix=keys.prefix, items=items
        )
        for name in dict(answer["assigned"]).values():
            note_assigned(service, namespace, name)


def _free(agents: Iterable[Agent]) -> list[Agent]:
    return [agent for agent in agents if agent.room]


def settle_soon(service: TaskServices, namespace: str, answer: dict[str, Any]) -> None:
    """Sweep until all dependents of ended tasks are unblocked or cancelled, if a Function left `more` of them."""
    if answer.get("more"):
        service.soon(("settle", namespace), lambda: sweep_tasks(service, namespace), 0.0)


async def sweep_tasks(service: TaskServices, namespace: str) -> None:
    """End tasks and leases whose time is up, update dependent tasks, and dispatch unless Redis is full."""
    await write_in_slices(service, namespace, "rm1_task_sweep", Keys(namespace).leases)
    with suppress(StoreFull):
        await dispatch(service, namespace)


async def end_reserved(service: TaskServices, namespace: str, agent: str) -> int:
    """End the queued tasks that are only for an agent that left; return how many."""
    key = Keys(namespace).agent(agent)
    return (await write_in_slices(service, namespace, "rm1_agent_reserved", key, agent=agent)).ended


class Released(NamedTuple):
    """How many tasks of an agent went on without it, and how many ended."""

    taken: int = 0
    ended: int = 0


async def write_in_slices(service: TaskServices, namespace: str, function: str, key: str, **fields: Any) -> Released:
    """Call a Function that ends or takes tasks until no more are left."""
    keep, released, more = service.settings.tasks.keep_seconds, Released(), True
    while more:
        answer = await service.backend.write(
            function, [key], repeatable=True, prefix=Keys(namespace).prefix, keep=keep, **fields
        )
        more = answer["more"]
        released = Released(released.taken + answer.get("taken", 0), released.ended + answer.get("ended", 0))
    return released


async def _first_queued(client: Client, keys: Keys, kinds: Sequence[str]) -> list[Task]:
    pipe = client.pipeline(transaction=False)
    for kind in kinds:
        pipe.zrange(keys.backlog(kind), 0, _BATCH - 1, withscores=True)
    found = [row for row in await execute(pipe) if isinstance(row, list)]
    queued = sorted((score, name.decode()) for row in found for name, score in row)
    return await load_tasks(client, keys, [name for _, name in queued[:_BATCH]])
