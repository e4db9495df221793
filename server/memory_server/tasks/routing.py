"""Ranks the agents that are able to do a task, by free capacity, track record, speed and closeness of meaning."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from memory_core.records.agent import Agent, AgentStatus, load_agents
from memory_core.records.keys import Keys
from memory_core.records.task import TaskPriority
from memory_core.records.task_kind import TaskKind
from memory_core.records.vectors import Matrix
from memory_server.contract.tasks import Suited
from memory_server.tasks.services import TaskServices

ROSTER_SECONDS = 0.25
"""How long agents are cached for routing; the Functions check capacity again."""
_UNKNOWN = 0.5


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
    service.rosters[namespace] = (time.monotonic() + ROSTER_SECONDS, agents)
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
    fastest = min((mean for agent in agents if (mean := _mean_ms(agent, demand.type)) is not None), default=None)
    ranked = [_suited(agent, demand, fastest) for agent in agents]
    return sorted(ranked, key=lambda suited: (suited.agent in demand.avoid, -suited.score, suited.agent))


def _suited(agent: Agent, demand: Demand, fastest: float | None) -> Suited:
    record, mean = agent.records.get(demand.type), _mean_ms(agent, demand.type)
    factors = Factors(
        free=agent.room / agent.max_tasks,
        success=(record.done + 1) / (record.done + record.failed + 2) if record else _UNKNOWN,
        speed=_UNKNOWN if mean is None or fastest is None else (fastest + 1) / (mean + 1),
        closeness=_closeness(agent, demand.vector),
    )
    score = sum(weight * factor for weight, factor in zip(_WEIGHTS[demand.priority], factors, strict=True))
    rounded = {name: round(factor, 3) for name, factor in factors._asdict().items()}
    return Suited(agent=agent.name, score=round(score, 3), **rounded)


def _mean_ms(agent: Agent, task_type: str) -> float | None:
    record = agent.records.get(task_type)
    return record.mean_ms if record else None


def _closeness(agent: Agent, vector: Matrix | None) -> float:
    """The best cosine between the task and the agent's description or a task that it completed."""
    if vector is None or agent.vectors is None or agent.vectors.shape[1:] != vector.shape:
        return 0.0  # a vector is missing, or the model has changed
    return min(max(float((agent.vectors @ vector).max()), 0.0), 1.0)
