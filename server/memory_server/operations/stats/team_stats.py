"""Statistics on a team: the outcomes of tasks, and how evenly agents share them."""

from __future__ import annotations

from collections import Counter

from memory_core.records import redis_time
from memory_core.records.agent import Agent, load_agents
from memory_core.records.keys import Keys
from memory_core.records.task import ENDED, TaskState
from memory_core.redis_client import Client
from memory_server.contract.stats import AgentFigures, TaskFigures
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller

_LOOK = 1000


async def task_figures(backend: Backend, caller: Caller) -> TaskFigures:
    """Count tasks by state: those that the caller submitted, or all of the namespace for an overseer."""
    keys = Keys(caller.namespace)
    count = _count_all if caller.oversees else _count_own
    states = await backend.read(lambda client: count(client, keys, caller.agent))
    ended = sum(states[state] for state in ENDED)
    rate = round(states[TaskState.COMPLETED] / ended, 4) if ended else None
    return TaskFigures(by_state={state: number for state, number in states.items() if number}, completion_rate=rate)


async def agent_figures(backend: Backend, caller: Caller) -> list[AgentFigures]:
    """Return the load of each registered agent; only the caller's own if it may not see the others."""
    agents = await backend.read(lambda client: load_agents(client, Keys(caller.namespace)))
    now = redis_time.now()
    if not caller.sees_server:
        return [_figures(agent, now, None) for agent in agents if agent.name == caller.agent]
    open_tasks = sum(agent.open_tasks for agent in agents if agent.is_alive(now))
    return [_figures(agent, now, open_tasks) for agent in sorted(agents, key=lambda found: found.name)]


def _figures(agent: Agent, now: float, of_all: int | None) -> AgentFigures:
    done = sum(record.done for record in agent.records.values())
    spent = sum(record.milliseconds for record in agent.records.values())
    return AgentFigures(
        agent=agent.name,
        alive=agent.is_alive(now),
        open_tasks=agent.open_tasks,
        max_tasks=agent.max_tasks,
        share=None if of_all is None else round(agent.open_tasks / max(of_all, 1), 4),
        completed=done,
        failed=sum(record.failed for record in agent.records.values()),
        mean_ms=round(spent / done, 1) if done else None,
    )


async def _count_own(client: Client, keys: Keys, agent: str) -> Counter[str]:
    names = await client.zrange(keys.submitted(agent), 0, _LOOK - 1, desc=True)
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.hget(keys.task(name.decode()), "state")
    return Counter(state.decode() for state in (await pipe.execute() if names else ()) if state)


async def _count_all(client: Client, keys: Keys, agent: str) -> Counter[str]:
    """Read the namespace's counters. They do not distinguish the states of open tasks."""
    found = await client.hmget(keys.counters, ["open_tasks", *(f"tasks_{state}" for state in ENDED)])
    names = ["open", *ENDED]
    return Counter({name: int(number or 0) for name, number in zip(names, found, strict=True)})
