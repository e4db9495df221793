"""Rules about what Redis stores: each task's history must be a valid lifecycle with one end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from .evidence import Evidence, Violation
from .task_records import Entry, TaskRecord

ENDS = {"completed", "dead", "cancelled"}
_ATTEMPT_ENDS = {"completed", "failed", "expired", "lost"}
_OPEN = {"assigned", "leased", "cancelled", "dead"}
_LATE_ENDS = {"completed", "failed"}
_ENDS_AFTER = {"expired": _LATE_ENDS, "failed": {"completed"}, "lost": set[str]()}
"""How an attempt may still end late."""
NEXT: dict[str, set[str]] = {
    "": {"submitted"},
    "submitted": _OPEN | {"unblocked"},
    "unblocked": _OPEN,
    "assigned": {"leased", "taken back", "cancelled", "dead"} | _LATE_ENDS,
    "taken back": _OPEN | _LATE_ENDS,
    "leased": _ATTEMPT_ENDS | {"resumed", "cancelled", "dead"},
    "resumed": _ATTEMPT_ENDS | {"resumed", "cancelled", "dead"},
    "failed": _OPEN | {"completed"},
    "expired": _OPEN | _LATE_ENDS,
    "lost": _OPEN,
    "dead": {"requeued"},
    "requeued": _OPEN | {"unblocked"},
    "completed": set(),
    "cancelled": set(),
}
"""The entries that may follow each entry of a history."""


def transitions_are_legal(evidence: Evidence) -> Iterator[Violation]:
    """Each entry of a history must be allowed after the one before."""
    for task in evidence.tasks.values():
        before = ""
        for entry in task.entries:
            if entry.op not in NEXT.get(before, set()):
                yield Violation("illegal transition", task.id, f"{before or 'nothing'} -> {entry.op}")
            before = entry.op


def every_task_ends_once(evidence: Evidence) -> Iterator[Violation]:
    """A history has one end, its last entry; the state agrees and no queue keeps the task."""
    for task in evidence.tasks.values():
        ends = [entry.op for entry in task.entries if entry.op in ENDS]
        lives = 1 + sum(entry.op == "requeued" for entry in task.entries)
        last = task.entries[-1].op if task.entries else ""
        if last not in ENDS or task.state not in ENDS:
            yield Violation("task without end", task.id, f"state {task.state}, last {last or 'nothing'}")
        elif task.state != last:
            yield Violation("state differs from history", task.id, f"state {task.state}, ended as {last}")
        if len(ends) > lives:
            yield Violation("more than one end", task.id, " ".join(ends))
    for key, what in evidence.leftovers.found:
        yield Violation("left in a queue", what, key)


def submissions_are_kept(evidence: Evidence) -> Iterator[Violation]:
    """Every acknowledged task exists."""
    for call in evidence.of("submit"):
        if call.is_ok and call.answer["task_id"] not in evidence.tasks:
            yield Violation("lost submission", call.answer["task_id"], f"acknowledged to {call.agent}")


def attempts_are_counted(evidence: Evidence) -> Iterator[Violation]:
    """Attempts count up from one, within the allowed retries, and each is ended by its last holder.

    An expired lease is no attempt, unless its result comes late.
    """
    for task in evidence.tasks.values():
        used, held, end = 0, None, ""
        for entry in task.entries:
            if entry.op == "requeued":
                used = 0
            elif entry.op in {"leased", "resumed"}:
                used, held, end = used + (entry.op == "leased"), entry, ""
                yield from _attempt(task, entry, used)
            elif entry.op in _ATTEMPT_ENDS:
                if held is None or _who(entry) != _who(held):
                    yield Violation("attempt ended by another agent", task.id, f"{entry.op} {_who(entry)}, held {held}")
                elif end and entry.op not in _ENDS_AFTER[end]:
                    yield Violation("attempt ended twice", task.id, f"{end}, then {entry.op} {_who(entry)}")
                used += (end == "expired") - (entry.op == "expired")
                end = entry.op
            if entry.op in ENDS:
                held = None


def _attempt(task: TaskRecord, lease: Entry, expected: int) -> Iterator[Violation]:
    if lease.attempt != expected:
        yield Violation("attempts miscounted", task.id, f"{lease.attempt} instead of {expected}")
    if expected > task.max_retries + 1:
        yield Violation("too many attempts", task.id, f"{expected}, {task.max_retries} retries allowed")


def _who(entry: Entry) -> tuple[str | None, int | None]:
    return entry.agent, entry.fence


def fences_increase(evidence: Evidence) -> Iterator[Violation]:
    """Fences increase in the order of leases: within a task, by Redis's time, and as claims saw them."""
    doubt = evidence.clock.uncertainty
    for task in evidence.tasks.values():
        for older, newer in pairwise(task.leases):
            if (newer.fence or 0) <= (older.fence or 0):
                yield Violation("fence does not increase", task.id, f"{older.fence} then {newer.fence}")
        if task.leases and task.fence != task.leases[-1].fence:
            yield Violation(
                "fence does not increase", task.id, f"the task has {task.fence}, not {task.leases[-1].fence}"
            )
    given = sorted((e.fence or 0, e.at, task.id) for task in evidence.tasks.values() for e in task.leases)
    for (fence, at, _), (other, later, task_id) in pairwise(given):
        if fence == other:
            yield Violation("fence used twice", task_id, str(fence))
        if later < at - doubt:
            yield Violation("fence does not increase", task_id, f"{other} at {later}, {fence} at {at}")
    yield from _fences_increase_for_claims(evidence)


def _fences_increase_for_claims(evidence: Evidence) -> Iterator[Violation]:
    """A claim that began after another ended has greater fences."""
    leases = evidence.leases.values()
    moments = sorted(
        [(lease.claim.ended, 1, lease.fence, lease.task) for lease in leases]
        + [(lease.claim.began, 0, lease.fence, lease.task) for lease in leases]
    )
    highest = 0
    for _, ended, fence, task in moments:
        if ended:
            highest = max(highest, fence)
        elif fence <= highest:
            yield Violation("fence does not increase", task, f"{fence} after {highest}")


def dependencies_come_first(evidence: Evidence) -> Iterator[Violation]:
    """A task is leased only after all its dependencies are completed."""
    for task in evidence.tasks.values():
        leased = [entry.at for entry in task.leases]
        for other in task.depends_on if leased else ():
            record = evidence.tasks.get(other)
            done = [entry.at for entry in record.entries if entry.op == "completed"] if record else []
            if not done or done[0] > leased[0] + evidence.clock.uncertainty:
                yield Violation("leased before its dependency completed", task.id, other)
