"""Chooses who should do a task: among able, living agents with room, by how free, apt and close each is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from memory_core.records.agent import Agent, AgentStatus, load_agents
from memory_core.records.keys import Keys
from memory_core.records.task import TaskPriority
from memory_core.records.task_kind import TaskKind
from memory_core.records.vectors import Matrix
from memory_server.tasks.services import TaskServices

ROSTER_SECONDS = 0.25
"""How long the agents of a namespace are remembered for routing; the Functions check capacity again."""
_UNKNOWN = 0.5


@dataclass(frozen=True, slots=True)
class RoutingWeights:
    """Shares of a score, which sum to 1."""

    free: float
    success: float
    speed: float
    closeness: float


_WEIGHTS = {
    TaskPriority.CRITICAL: RoutingWeights(free=0.15, success=0.40, speed=0.20, closeness=0.25),
    TaskPriority.HIGH: RoutingWeights(free=0.25, success=0.30, speed=0.20, closeness=0.25),
    TaskPriority.MEDIUM: RoutingWeights(free=0.35, success=0.25, speed=0.15, closeness=0.25),
    TaskPriority.LOW: RoutingWeights(free=0.50, success=0.15, speed=0.10, closeness=0.25),
}
"""The more a task matters, the more a good record counts; the less it matters, the more it goes to whoever idles."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How well an agent suits a task; every figure lies between 0 and 1."""

    agent: str
    score: float
    free: float
    success: float
    speed: float
    closeness: float


@dataclass(frozen=True, slots=True)
class Demand:
    """What is known of a task when it is routed; `vector` has shape (dimension,) or is not known."""

    kind: TaskKind
    type: str
    priority: TaskPriority
    vector: Matrix | None = None
    avoid: tuple[str, ...] = ()


async def roster(service: TaskServices, namespace: str) -> list[Agent]:
    """Give the agents of a namespace with their vectors, as they were a moment ago."""
    known = service.rosters.get(namespace)
    if known and known[0] > time.monotonic():
        return known[1]
    keys, model = Keys(namespace), await service.models.current(namespace)
    agents = await service.backend.read(lambda client: load_agents(client, keys, model=model))
    service.rosters[namespace] = (time.monotonic() + ROSTER_SECONDS, agents)
    return agents


def note_assigned(service: TaskServices, namespace: str, name: str | None) -> None:
    """Count a task just assigned among what an agent has in hand, until the roster is read again."""
    _, agents = service.rosters.get(namespace, (0.0, []))
    for position, agent in enumerate(agents):
        if agent.name == name:
            agents[position] = replace(agent, open_tasks=agent.open_tasks + 1)


def able(agents: Iterable[Agent], kind: TaskKind, now: float) -> list[Agent]:
    """Keep those that live, take work and can do a kind of task."""
    return [
        agent
        for agent in agents
        if agent.is_alive(now) and agent.status is not AgentStatus.DRAINING and agent.is_able(kind)
    ]


def rank(agents: Sequence[Agent], demand: Demand) -> list[Choice]:
    """Order able agents by how well they suit a task, best first; those that failed at it come last."""
    fastest = min((mean for agent in agents if (mean := _mean_ms(agent, demand.type)) is not None), default=None)
    choices = [_weigh(agent, demand, fastest) for agent in agents]
    return sorted(choices, key=lambda choice: (choice.agent in demand.avoid, -choice.score, choice.agent))


def _weigh(agent: Agent, demand: Demand, fastest: float | None) -> Choice:
    weights, record = _WEIGHTS[demand.priority], agent.records.get(demand.type)
    free = agent.room / agent.max_tasks
    success = (record.done + 1) / (record.done + record.failed + 2) if record else _UNKNOWN
    mean = _mean_ms(agent, demand.type)
    speed = _UNKNOWN if mean is None or fastest is None else (fastest + 1) / (mean + 1)
    closeness = _closeness(agent, demand.vector)
    score = weights.free * free + weights.success * success + weights.speed * speed + weights.closeness * closeness
    return Choice(agent.name, *(round(part, 3) for part in (score, free, success, speed, closeness)))


def _mean_ms(agent: Agent, task_type: str) -> float | None:
    record = agent.records.get(task_type)
    return record.mean_ms if record else None


def _closeness(agent: Agent, vector: Matrix | None) -> float:
    """The best cosine between the task and the agent's description or something that it completed."""
    if vector is None or agent.vectors is None or agent.vectors.shape[1:] != vector.shape:
        return 0.0  # nothing is known, or the model was changed in between
    return min(max(float((agent.vectors @ vector).max()), 0.0), 1.0)
