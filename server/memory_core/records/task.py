"""Task records: states, requirements and visibility."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from memory_core.records.damage import execute, or_none
from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.names import split_labels
from memory_core.records.task_kind import TaskKind
from memory_core.redis_client import Client


class TaskState(StrEnum):
    """`waiting` for dependencies → `pending` → `leased` → a final state; `retrying` leads back to `pending`."""

    WAITING = "waiting"
    PENDING = "pending"
    LEASED = "leased"
    RETRYING = "retrying"
    COMPLETED = "completed"
    DEAD = "dead"
    CANCELLED = "cancelled"


ENDED = frozenset({TaskState.COMPLETED, TaskState.DEAD, TaskState.CANCELLED})


class TaskPriority(StrEnum):
    """The order in which pending tasks are assigned."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 is assigned first."""
        return list(TaskPriority).index(self)


@dataclass(frozen=True, slots=True)
class Task:
    """One task. Times are epoch seconds; `payload`, `result`, `metrics` and `progress` are JSON values.

    `handoff` and `progress` are the last of earlier attempts. Its holder sees the results of the tasks in `results_of`.
    """

    id: str
    state: TaskState
    description: str
    type: str
    priority: TaskPriority
    kind: TaskKind
    submitter: str
    assigned: str | None
    holders: tuple[str, ...]
    avoid: tuple[str, ...]
    attempt: int
    max_retries: int
    lease_seconds: float
    created_at: float
    depends_on: tuple[str, ...] = ()
    leased_at: float = 0.0
    lease_until: float | None = None
    next_at: float | None = None
    deadline: float | None = None
    finished_at: float | None = None
    payload: Any = None
    result: Any = None
    metrics: Any = None
    error: str | None = None
    handoff: str | None = None
    handoff_by: str | None = None
    progress: Any = None
    progress_by: str | None = None
    results_of: tuple[str, ...] = ()
    result_memory: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def is_party(self, agent: str, since: float = 0.0) -> bool:
        """Whether an agent submitted, holds or held it, and so may see all of it.

        `since` is when the agent took over its name: what an earlier holder of the name submitted or held is not its.
        """
        if agent == self.assigned or (agent == self.kind.only and not self.has_ended):
            return True
        if self.created_at >= since:
            return agent in {self.submitter, self.kind.only, *self.holders}
        return self.leased_at >= since and agent in self.holders[-1:]

    def may_see(self, agent: str, is_able: bool, since: float) -> bool:
        """Whether an agent may see it: as a party, or because it is able to do a task that is open to all."""
        return self.is_party(agent, since) or (is_able and not self.kind.only)


FIELDS = (
    "state", "description", "type", "priority", "kind_spec", "submitter", "assigned", "holders", "avoid", "attempt",
    "max_retries", "lease_seconds", "created_at", "depends_on", "leased_at", "lease_until", "next_at", "deadline",
    "finished_at", "payload", "result", "metrics", "error", "handoff", "handoff_by", "progress", "progress_by",
    "results_of", "result_memory",
)  # fmt: skip


def parse(task_id: str, values: list[bytes | None]) -> Task | None:
    """Build a Task from the HMGET of FIELDS; None if it is gone."""
    row = dict(zip(FIELDS, values, strict=True))
    if row["state"] is None:
        return None
    text = {name: value.decode() for name, value in row.items() if value is not None and name != "kind_spec"}
    times = ("leased_at", "lease_until", "next_at", "deadline", "finished_at")
    documents = ("payload", "result", "metrics", "progress")
    texts = ("assigned", "error", "handoff", "handoff_by", "progress_by", "result_memory")
    return Task(
        id=task_id,
        state=TaskState(text["state"]),
        description=text["description"],
        type=text["type"],
        priority=TaskPriority(text["priority"]),
        kind=TaskKind.parse(row["kind_spec"] or b""),
        submitter=text["submitter"],
        holders=split_labels(text.get("holders")),
        avoid=split_labels(text.get("avoid")),
        attempt=int(text["attempt"]),
        max_retries=int(text["max_retries"]),
        lease_seconds=float(text["lease_seconds"]),
        created_at=float(text["created_at"]),
        depends_on=split_labels(text.get("depends_on")),
        results_of=split_labels(text.get("results_of")),
        **{name: text.get(name) for name in texts},
        **{name: float(text[name]) for name in times if name in text},
        **{name: json.loads(text[name]) for name in documents if name in text},
    )


async def load_tasks(client: Client, keys: Keys, task_ids: Iterable[str]) -> list[Task]:
    """Load tasks in the order of the ids, without those that are gone or damaged."""
    ids = list(task_ids)
    if not ids:
        return []
    pipe = client.pipeline(transaction=False)
    for task_id in ids:
        pipe.hmget(keys.task(task_id), FIELDS)
    rows = zip(ids, await execute(pipe), strict=True)
    tasks = [or_none(lambda task_id=task_id, row=row: parse(task_id, row)) for task_id, row in rows]
    return [task for task in tasks if task]


async def load_vectors(client: Client, keys: Keys, task_ids: Iterable[str], model: Model) -> list[bytes | None]:
    """Load a model's vectors of open tasks in the order of the ids; None for a missing vector."""
    pipe = client.pipeline(transaction=False)
    for task_id in task_ids:
        pipe.hget(keys.task_vector(task_id), model.field)
    return [vector if isinstance(vector, bytes) else None for vector in await execute(pipe)]
