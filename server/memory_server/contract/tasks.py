"""Answers of the task tools."""

from __future__ import annotations

from itertools import chain
from typing import Any

from pydantic import BaseModel, Field

from memory_core.records.task import Task, TaskPriority, TaskState
from memory_core.records.times import to_iso
from memory_server.contract.answer import Answer
from memory_server.contract.memories import Hit
from memory_server.contract.untrusted_text import NOTE, quoted, word


class TaskEvent(BaseModel):
    """One event of a task."""

    at: str
    op: str
    agent: str | None = None
    attempt: int | None = None
    fence: int | None = Field(default=None, description="number of the lease's fencing token")
    error: str | None = None
    handoff: str | None = None

    def line(self) -> str:
        texts = [quoted(text) for text in (self.error, self.handoff) if text]
        return " ".join(filter(None, [self.at, self.op, self.agent, *texts]))


class TaskView(BaseModel):
    """One task. Times are ISO 8601 in UTC."""

    task_id: str
    state: TaskState
    description: str
    task_type: str
    priority: TaskPriority
    submitted_by: str
    assigned_to: str | None = None
    assign_to: str | None = None
    held_by: list[str] = Field(default_factory=list, description="agents that have had its lease, in order")
    required_capabilities: list[str] = []
    min_context_window: int = 0
    depends_on: list[str] = []
    payload: Any = None
    attempt: int = 0
    max_retries: int
    lease_until: str | None = None
    next_attempt_at: str | None = None
    deadline: str | None = None
    created_at: str
    finished_at: str | None = None
    result: Any = None
    metrics: Any = None
    error: str | None = None

    @classmethod
    def of(cls, task: Task, *, whole: bool = True, error: bool = True) -> TaskView:
        """Build the view of a task; without `whole` it has no payload, result and metrics, without `error` no error."""
        return cls(
            task_id=task.id,
            state=task.state,
            description=task.description,
            task_type=task.type,
            priority=task.priority,
            submitted_by=task.submitter,
            assigned_to=task.assigned,
            assign_to=task.kind.only or None,
            held_by=list(task.holders),
            required_capabilities=list(task.kind.capabilities),
            min_context_window=task.kind.window,
            depends_on=list(task.depends_on),
            payload=task.payload if whole else None,
            attempt=task.attempt,
            max_retries=task.max_retries,
            lease_until=to_iso(task.lease_until),
            next_attempt_at=to_iso(task.next_at),
            deadline=to_iso(task.deadline),
            created_at=to_iso(task.created_at) or "",
            finished_at=to_iso(task.finished_at),
            result=task.result if whole else None,
            metrics=task.metrics if whole else None,
            error=task.error if error else None,
        )

    def line(self) -> str:
        who = f", with {self.assigned_to}" if self.assigned_to else ""
        about = f"{word(self.task_type)}, {self.priority}, by {self.submitted_by}{who}"
        return f"[{self.task_id}] {self.state} ({about}) {quoted(self.description)}"


class Suited(BaseModel):
    """How well an agent suits the task; all figures from 0 to 1."""

    agent: str
    score: float
    free: float = Field(description="share of its capacity that is free")
    success: float = Field(description="how often it completed this type of task; 0.5 where it never tried")
    speed: float = Field(description="1 is the fastest agent at this type; 0.5 where it never completed one")
    closeness: float = Field(description="of the task's text to its description and what it completed last")


class SimilarTask(BaseModel):
    """A similar open task."""

    task_id: str
    score: float
    state: TaskState
    submitted_by: str
    description: str


class Why(BaseModel):
    """Why a task was assigned as it was."""

    reason: str
    considered: list[Suited] = []


class DistributeAnswer(Answer):
    """A submitted task."""

    task_id: str
    state: TaskState
    assigned_to: str | None = None
    why: Why
    similar_tasks: list[SimilarTask] = Field(default_factory=list[SimilarTask])
    replayed: bool = Field(default=False, description="true: this idempotency_key had submitted it before")

    def shown(self) -> list[str]:
        return [self.task_id, *(task.task_id for task in self.similar_tasks)]

    def lines(self) -> list[str]:
        lines = [f"Task {self.task_id} is {self.state}: {self.why.reason}."]
        lines += [
            f"{s.agent}: {s.score:.2f} (free {s.free}, success {s.success}, speed {s.speed}, closeness {s.closeness})"
            for s in self.why.considered
        ]
        similar = self.similar_tasks
        lines += [f"Similar and {s.state}: [{s.task_id}] {s.score:.2f} {quoted(s.description)}" for s in similar]
        return lines


class ClaimedTask(TaskView):
    """A task to work on, with earlier attempts and related memories."""

    lease_token: str | None = Field(default=None, description="present it to renew, complete or fail")
    earlier_failures: list[TaskEvent] = []
    handoff: str | None = Field(default=None, description="note of the previous agent")
    resumed: bool = Field(default=False, description="true: an earlier session of yours held it; its token has ended")
    progress: Any = Field(default=None, description="what you reported last, for a task that you held before")
    memories: list[Hit] = []


class HeldElsewhere(BaseModel):
    """A task that another live session of the same agent holds."""

    task_id: str
    lease_until: str

    def line(self) -> str:
        return f"Another session of yours works on task {self.task_id}, until {self.lease_until}."


class PendingAnswer(Answer):
    """Tasks of an agent, leased to it now or only shown."""

    tasks: list[ClaimedTask]
    held: list[ClaimedTask] = Field(default_factory=list[ClaimedTask], description="held by this session already")
    elsewhere: list[HeldElsewhere] = Field(
        default_factory=list[HeldElsewhere], description="held by another live session of yours"
    )
    open_tasks: int = Field(default=0, description="how many tasks you hold leases of")
    max_tasks: int = 0

    def shown(self) -> list[str]:
        return [*(task.task_id for task in [*self.tasks, *self.held]), *self.shown_besides()]

    def shown_besides(self) -> list[str]:
        return [hit.memory.memory_id for task in self.tasks for hit in task.memories]

    def lines(self) -> list[str]:
        found = [*map(_brief, self.tasks)]
        if self.held and not self.tasks:
            found += [[f"No new task. You hold {self.open_tasks} of {self.max_tasks}:"], *map(_brief, self.held)]
        if self.elsewhere and not self.tasks:
            found.append([other.line() for other in self.elsewhere])
        if not found:
            return [f"No task for you now ({self.open_tasks} of {self.max_tasks} in hand)."]
        first, *others = found
        return [*first, *chain.from_iterable(["", *other] for other in others)]


def _brief(task: ClaimedTask) -> list[str]:
    lines = [task.line()]
    if task.resumed:
        lines.append("You took this on in an earlier session, whose lease_token has ended. Go on with it.")
    if task.payload is not None:
        lines.append(f"Payload: {quoted(task.payload)}")
    if task.lease_token:
        lines.append(f"Attempt {task.attempt}, yours until {task.lease_until}: lease_token={task.lease_token}")
    lines += [f"Earlier: {event.agent}: {quoted(event.error or '')}" for event in task.earlier_failures]
    if task.handoff:
        lines.append(f"Handoff: {quoted(task.handoff)}")
    if task.progress is not None:
        lines.append(f"Progress that you reported last: {quoted(task.progress)}")
    lines += [NOTE] if task.memories else []
    return [*lines, *chain.from_iterable(hit.memory.lines(f"Memory {hit.score:.2f} ") for hit in task.memories)]


class TaskStateAnswer(Answer):
    """The state of a task."""

    task_id: str
    state: str
    next_attempt_at: str | None = None
    memory_id: str | None = Field(default=None, description="where the result was stored")

    def lines(self) -> list[str]:
        when = f"; next attempt at {self.next_attempt_at}" if self.next_attempt_at else ""
        stored = f"; its result is memory {self.memory_id}" if self.memory_id else ""
        return [f"Task {self.task_id} is {self.state}{when}{stored}."]


class TaskAnswer(Answer):
    """One task with its history."""

    task: TaskView
    history: list[TaskEvent] = Field(default_factory=list[TaskEvent])

    def shown(self) -> list[str]:
        return [self.task.task_id]

    def lines(self) -> list[str]:
        lines = [self.task.line()]
        if self.task.result is not None:
            lines.append(f"Result: {quoted(self.task.result)}")
        return [*lines, *(event.line() for event in self.history)]


class TaskListAnswer(Answer):
    """Tasks that the caller submitted, holds or held, newest first."""

    tasks: list[TaskView]

    def shown(self) -> list[str]:
        return [task.task_id for task in self.tasks]

    def lines(self) -> list[str]:
        return [f"{len(self.tasks)} tasks.", *(task.line() for task in self.tasks)]
