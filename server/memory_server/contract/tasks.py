"""Answers of the task tools."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any, Self

from pydantic import BaseModel, Field

from memory_core.records.task import Task, TaskPriority, TaskState
from memory_core.records.times import to_iso
from memory_server.contract.answer import Answer
from memory_server.contract.memories import Hit
from memory_server.contract.untrusted_text import NOTE, counted, framed, quoted, word


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

    def begun(self, chars: int) -> TaskEvent:
        """Return it with at most so many characters of each text."""
        texts = {"error": self.error, "handoff": self.handoff}
        return self.model_copy(update={name: cut(text, chars) for name, text in texts.items() if text})


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
    result_memory: str | None = Field(default=None, description="id of the memory that holds the result")
    metrics: Any = None
    error: str | None = None
    handoff: str | None = Field(default=None, description="last note of an agent that failed at it")
    handoff_by: str | None = None
    progress: Any = Field(
        default=None, description="metrics that an earlier holder reported last, if it did not finish"
    )
    progress_by: str | None = None
    cut: list[str] | None = Field(
        default=None, description="parts of which this is the beginning; get_task shows them page by page"
    )

    @classmethod
    def of(cls, task: Task, *, whole: bool = True, error: bool = True) -> TaskView:
        """Build the view of a task; without `whole` it has only what all who see it may know, without `error` no error.

        `whole` adds payload, result, metrics, handoff and progress.
        """
        notes: dict[str, Any] = {
            "result_memory": task.result_memory,
            "handoff": task.handoff,
            "handoff_by": task.handoff_by,
            "progress": task.progress,
            "progress_by": task.progress_by,
        }
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
            **(notes if whole else {}),
        )

    def line(self) -> str:
        return f"{self._head()} {quoted(self.description)}"

    def with_short_lists(self) -> Self:
        """Return the view with the first of many items in its lists."""
        lists = {name: getattr(self, name)[:_LISTED_ITEMS] for name in _LISTS}
        return self.model_copy(
            update={name: [cut(one, _LISTED_ITEM_CHARS) for one in some] for name, some in lists.items()}
        )

    def brief(self) -> list[str]:
        """Return the lines of a list: the title, and the beginning of the result or the error."""
        title, *others = self.description.strip().split("\n", 1)
        title = f"{title} …" if others else title
        lines = [f"{self._head()} {quoted(cut(title, _TITLE_CHARS))}"]
        if self.result is not None:
            lines.append(f"  Result: {self.result_line(_BRIEF_CHARS)}")
        elif self.error:
            lines.append(f"  Error: {quoted(cut(self.error, _BRIEF_CHARS))}")
        return lines

    def result_line(self, most: int) -> str:
        """Return the result, cut to so many characters, and where all of it is."""
        is_cut = "result" in (self.cut or ())
        return result_line(self.task_id, self.result, self.result_memory, most, is_cut=is_cut)

    def mark(self, part: str) -> str:
        """Return the words that follow the name of a part which is only a beginning."""
        return " (the beginning)" if part in (self.cut or ()) else ""

    def notes(self) -> list[str]:
        """Return the lines of what earlier holders left, each under its own label."""
        lines: list[str] = []
        if self.handoff:
            lines.append(f"Handoff by {self.handoff_by}{self.mark('handoff')}: {quoted(self.handoff)}")
        if self.progress is not None:
            shown = f"{self.mark('progress')}: {quoted(self.progress)}"
            lines.append(f"Last progress reported by {self.progress_by}{shown}")
        return lines

    def _head(self) -> str:
        about = [word(self.task_type), str(self.priority), f"by {self.submitted_by}"]
        if self.assigned_to:
            verb = "held by" if self.state is TaskState.LEASED else "offered to"
            about.append(f"{verb} {self.assigned_to}")
        elif self.held_by:
            about.append(f"{'done' if self.state is TaskState.COMPLETED else 'last held'} by {self.held_by[-1]}")
        if self.lease_until and self.state is TaskState.LEASED:
            about.append(f"until {self.lease_until}")
        return f"[{self.task_id}] {self.state} ({', '.join(about)})"


_TITLE_CHARS, _BRIEF_CHARS = 120, 160
_LISTS = ("held_by", "required_capabilities", "depends_on")
_LISTED_ITEMS, _LISTED_ITEM_CHARS = 8, 64
"""What a list of tasks shows of each of them."""


def cut(text: str, most: int) -> str:
    """Cut a text to so many characters."""
    return text if len(text) <= most else text[: max(most - 1, 0)] + "…"


def as_text(value: object) -> str:
    """Return a text unchanged, and another value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def result_line(task_id: str, result: Any, memory_id: str | None, most: int = 0, *, is_cut: bool = False) -> str:
    """Return a result as one line, with `most` of about so many characters, and where all of it is."""
    line = quoted(result)
    is_long = bool(most) and len(line) > most
    if is_long or is_cut:
        stored = f"; stored as memory {memory_id}" if memory_id else ""  # which may have been changed since
        shown = quoted(cut(result if isinstance(result, str) else line, most)) if is_long else line
        return f"{shown} (cut; all of it: get_task task_id={task_id}{stored})"
    return f"{line} (memory {memory_id})" if memory_id else line


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
        follow = f"get_task task_id={self.task_id} shows its state and result; wait_for_events says when it ends."
        lines = [f"Task {self.task_id} is {self.state}: {self.why.reason}.", follow]
        lines += [
            f"{s.agent}: {s.score:.2f} (free {s.free}, success {s.success}, speed {s.speed}, closeness {s.closeness})"
            for s in self.why.considered
        ]
        similar = self.similar_tasks
        lines += [f"Similar and {s.state}: [{s.task_id}] {s.score:.2f} {quoted(s.description)}" for s in similar]
        return lines


class Predecessor(BaseModel):
    """A task that a task depends on, with its result as far as it fits, if the agent may see it."""

    task_id: str
    state: TaskState
    description: str
    by: str | None = Field(default=None, description="the agent that did it")
    result: Any = None
    cut: bool = Field(default=False, description="true: result is the beginning of a longer one")
    memory_id: str | None = Field(default=None, description="where the result is stored")

    def begun(self, chars: int) -> Predecessor:
        """Return it with at most so many characters of its result."""
        text = "" if self.result is None else as_text(self.result)
        return self.model_copy(update={"result": text[:chars], "cut": True}) if len(text) > chars else self

    def lines(self) -> list[str]:
        who = f" by {self.by}" if self.by else ""
        lines = [f"After [{self.task_id}] {self.state}{who}: {quoted(self.description)}"]
        if self.result is not None:
            shown = result_line(self.task_id, self.result, self.memory_id, is_cut=self.cut)
            lines.append(f"  Result: {shown}")
        return lines


class ClaimedTask(TaskView):
    """A task to work on, with the results that it needs, earlier attempts and related memories."""

    lease_token: str | None = Field(default=None, description="present it to renew, complete or fail")
    predecessors: list[Predecessor] = Field(default_factory=list[Predecessor])
    earlier_failures: list[TaskEvent] = []
    resumed: bool = Field(default=False, description="true: an earlier session of yours held it; its token has ended")
    memories: list[Hit] = []


class HeldElsewhere(BaseModel):
    """A task that another live session of the same agent holds."""

    task_id: str
    lease_until: str

    def line(self) -> str:
        return f"Another session of yours works on task {self.task_id}, until {self.lease_until}."


class PendingAnswer(Answer):
    """Tasks of an agent, leased to it now or only shown."""

    has_own_limit = True

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
        hits = [hit.memory.memory_id for task in self.tasks for hit in task.memories]
        results = [one for task in self.tasks for one in task.predecessors if one.result is not None]
        return [*hits, *(one.memory_id or one.task_id for one in results)]

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
        lines.append(f"Payload{task.mark('payload')}: {quoted(task.payload)}")
    if task.lease_token:
        lines.append(f"Attempt {task.attempt}, yours until {task.lease_until}: lease_token={task.lease_token}")
    lines += chain.from_iterable(one.lines() for one in task.predecessors)
    lines += [f"Earlier: {event.agent}: {quoted(event.error or '')}" for event in task.earlier_failures]
    lines += task.notes()
    lines += [NOTE] if task.memories else []
    return [*lines, *chain.from_iterable(hit.memory.lines(f"Memory {hit.score:.2f} ") for hit in task.memories)]


class TaskAnswer(Answer):
    """One task with its history, or a page of one of its long parts."""

    has_own_limit = True

    task: TaskView
    history: list[TaskEvent] = Field(default_factory=list[TaskEvent])
    part: str | None = Field(default=None, description="the part of the task that content is of")
    content: str | None = None
    characters: str | None = Field(default=None, description="which characters of the part these are")
    next_cursor: str | None = Field(default=None, description="shows what is left of the long parts")

    def shown(self) -> list[str]:
        return [self.task.task_id]

    def lines(self) -> list[str]:
        more = [f"More: get_task task_id={self.task.task_id} cursor={self.next_cursor}"] if self.next_cursor else []
        if self.content is None:
            return [*self._overview(), *more]
        title = f"{self.part}, characters {self.characters}:"
        return [NOTE, self.task.line(), title, *framed(self.content), *more]

    def _overview(self) -> list[str]:
        task = self.task
        lines = [task.line()]
        if task.payload is not None:
            lines.append(f"Payload{task.mark('payload')}: {quoted(task.payload)}")
        if task.result is not None:
            lines.append(f"Result: {self._result()}")
        elif task.error:
            lines.append(f"Error{task.mark('error')}: {quoted(task.error)}")
        if task.metrics is not None:
            lines.append(f"Metrics{task.mark('metrics')}: {quoted(task.metrics)}")
        return [*lines, *task.notes(), *(event.line() for event in self.history)]

    def _result(self) -> str:
        task = self.task
        memory = f"memory {task.result_memory}" if task.result_memory else ""
        if "result" in (task.cut or ()):
            memory = f"or retrieve_memory memory_id={task.result_memory}" if memory else ""
            memory = " ".join(filter(None, ["the beginning; see More", memory]))
        return f"{quoted(task.result)} ({memory})" if memory else quoted(task.result)


class TaskListAnswer(Answer):
    """Tasks that the caller submitted, holds or held, newest first."""

    has_own_limit = True

    tasks: list[TaskView]
    next_cursor: str | None = None
    total: int | None = Field(default=None, description="how many there are on all pages")

    def shown(self) -> list[str]:
        return [task.task_id for task in self.tasks]

    def lines(self) -> list[str]:
        total = counted(self.total or len(self.tasks), "task")
        of_all = f"{len(self.tasks)} of {total}" if self.next_cursor else counted(len(self.tasks), "task")
        more = [f"More: cursor={self.next_cursor}"] if self.next_cursor else []
        return [f"{of_all}.", *chain.from_iterable(task.brief() for task in self.tasks), *more]
