"""Assigns queued tasks to agents with free capacity, after events and on sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.task import Task, load_tasks, load_vectors
from memory_core.records.task_kind import TaskKind
from memory_core.records.vectors import from_bytes
from memory_core.redis_client import Client
from memory_server.tasks.routing import Demand, able, note_assigned, rank, roster
from memory_server.tasks.services import TaskServices

_BATCH = 32
_MIN_DELAY_SECONDS = 0.01
_SECONDS_PER_AGENT = 0.0005


def dispatch_soon(service: TaskServices, namespace: str) -> None:
    """Dispatch after a short delay, once for all requests in it. More agents cost more, so they delay it longer."""
    _, agents = service.rosters.get(namespace, (0.0, ()))
    seconds = _MIN_DELAY_SECONDS + _SECONDS_PER_AGENT * len(agents)
    service.soon(("dispatch", namespace), lambda: dispatch(service, namespace), seconds)


async def dispatch(service: TaskServices, namespace: str) -> int:
    """Assign the first queued tasks to agents with free capacity; return how many were assigned."""
    keys, now = Keys(namespace), redis_time.now()
    kinds = await service.backend.read(lambda client: client.hgetall(keys.kinds))
    if not kinds:
        return 0
    service.rosters.pop(namespace, None)
    agents = [agent for agent in await roster(service, namespace) if agent.room]
    open_kinds = {
        name.decode(): fit for name, spec in kinds.items() if (fit := able(agents, TaskKind.parse(spec), now))
    }
    if not open_kinds:
        return 0
    tasks = await service.backend.read(lambda client: _first_queued(client, keys, list(open_kinds)))
    model = await service.models.current(namespace)
    demands = await service.backend.read(lambda client: _demands(client, keys, tasks, model))
    items = [
        {"id": task.id, "candidates": [suited.agent for suited in rank(open_kinds[task.kind.id], demand)]}
        for task, demand in zip(tasks, demands, strict=True)
        if task.kind.id in open_kinds
    ]
    answer = await service.backend.write(
        "rm1_task_assign", [keys.leases], repeatable=True, prefix=keys.prefix, items=items
    )
    for name in dict(answer["assigned"]).values():
        note_assigned(service, namespace, name)
    return len(answer["assigned"])


async def sweep_tasks(service: TaskServices, namespace: str) -> None:
    """End tasks and leases whose time is up, update dependent tasks, and dispatch."""
    keys, keep, more = Keys(namespace), service.settings.tasks.keep_seconds, True
    while more:
        answer = await service.backend.write(
            "rm1_task_sweep", [keys.leases], repeatable=True, prefix=keys.prefix, keep=keep
        )
        more = answer["more"]
    await dispatch(service, namespace)


async def _first_queued(client: Client, keys: Keys, kinds: Sequence[str]) -> list[Task]:
    pipe = client.pipeline(transaction=False)
    for kind in kinds:
        pipe.zrange(keys.backlog(kind), 0, _BATCH - 1, withscores=True)
    queued = sorted((score, name.decode()) for row in await pipe.execute() for name, score in row)
    return await load_tasks(client, keys, [name for _, name in queued[:_BATCH]])


async def _demands(client: Client, keys: Keys, tasks: Sequence[Task], model: Model) -> list[Demand]:
    vectors = await load_vectors(client, keys, [task.id for task in tasks], model)
    rows = [from_bytes(vector, len(vector) // 4)[0] if vector else None for vector in vectors]
    return [Demand(task.kind, task.type, task.priority, row, task.avoid) for task, row in zip(tasks, rows, strict=True)]
