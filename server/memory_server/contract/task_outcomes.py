"""The answer of the tools that change a task: its state, and what happens next."""

from __future__ import annotations

from pydantic import Field

from memory_server.contract.answer import Answer


class TaskStateAnswer(Answer):
    """The state of a task."""

    task_id: str
    state: str
    next_attempt_at: str | None = None
    memory_id: str | None = Field(default=None, description="where the result was stored")
    submitted_by: str | None = None
    attempt: int | None = Field(default=None, description="the attempt that ended")
    max_attempts: int | None = None

    def lines(self) -> list[str]:
        return [f"Task {self.task_id} is {self.state}.", *_STATE_LINES.get(self.state, _nothing)(self)]


def _completed(answer: TaskStateAnswer) -> list[str]:
    by = answer.submitted_by or "its submitter"
    lines = [f"{by} sees it, with any result, in get_task; the lease_token is used up; get_pending_tasks has more."]
    if answer.memory_id:
        lines.append(f"The result is memory {answer.memory_id}: yours, and readable by {by} and for dependent tasks.")
    return lines


def _retried(answer: TaskStateAnswer) -> list[str]:
    ended = f"attempt {answer.attempt} of {answer.max_attempts}" if answer.attempt else "the attempt"
    when = f" at {answer.next_attempt_at}" if answer.next_attempt_at else ""
    first = "others first" if answer.state == "reassigned" else "the first free agent, which may be you"
    return [
        f"That was {ended}; it goes out again{when}, to {first}, with your error and handoff.",
        "Your lease_token is void: do no more work on it. get_pending_tasks gives you more work.",
    ]


def _dead(answer: TaskStateAnswer) -> list[str]:
    by = answer.submitted_by or "its submitter"
    return [f"No attempt follows unless {by} calls requeue_task. get_pending_tasks gives you more work."]


def _cancelled(answer: TaskStateAnswer) -> list[str]:
    return ["The agent that held it is notified, and its lease_token is void."]


def _queued(answer: TaskStateAnswer) -> list[str]:
    return ["It has all its attempts again. get_task shows how it goes."]


def _nothing(answer: TaskStateAnswer) -> list[str]:
    return []


_STATE_LINES = {
    "completed": _completed,
    "retrying": _retried,
    "reassigned": _retried,
    "dead": _dead,
    "cancelled": _cancelled,
    "pending": _queued,
    "waiting": _queued,
}
"""What happens next, by the state that an answer reports."""
