"""The checker of task histories accepts valid histories and reports every violation."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chaos import checker, history
from chaos.evidence import Evidence
from chaos.history import Call, Clock, Outcome, Recorder, Refusal
from chaos.task_records import Entry, Leftovers, TaskRecord

from memory_core.errors import LeaseLost, OutcomeUnknown
from memory_core.records.times import to_iso

AHEAD = 1_000_000.0
"""Wall clock time at monotonic time 0."""
T = "t1"


def token(fence: int, task: str = T) -> str:
    """A lease token."""
    return f"{task}.{fence}.secret"


def call(op: str, agent: str, began: float, ended: float, **arguments: Any) -> Call:
    """An answered call."""
    answer = arguments.pop("answer", {})
    return Call(agent, op, agent, arguments, Outcome.OK, answer, began, ended)


def unknown(made: Call) -> Call:
    """The call with an unknown outcome."""
    return replace(made, outcome=Outcome.UNKNOWN, answer={}, ended=math.inf)


def refused(made: Call, code: str = "lease_lost") -> Call:
    return replace(made, outcome=Outcome.FAIL, answer={"code": code})


def dead(made: Call) -> Call:
    return replace(made, answer={"state": "dead"})


def submit(began: float = 0.0, task: str = T) -> Call:
    return call("submit", "lead", began, began + 0.1, answer={"task_id": task})


def claim(agent: str, fence: int, began: float, until: float, task: str = T) -> Call:
    """A claim that received one lease."""
    lease = {"task_id": task, "lease_token": token(fence, task), "lease_until": to_iso(AHEAD + until)}
    return call("claim", agent, began, began + 0.1, answer={"tasks": [lease]})


def shows(agent: str, fence: int, began: float, until: float) -> Call:
    """A claim that shows what the session holds."""
    made = claim(agent, fence, began, until)
    return replace(made, answer={"tasks": [], "held": made.answer["tasks"]})


def complete(agent: str, fence: int, began: float, task: str = T) -> Call:
    return call("complete", agent, began, began + 0.1, task_id=task, lease_token=token(fence, task))


def fail(agent: str, fence: int, began: float) -> Call:
    return call("fail", agent, began, began + 0.1, task_id=T, lease_token=token(fence))


def renew(agent: str, fence: int, began: float, until: float) -> Call:
    """A heartbeat that renewed one lease."""
    renewed = {T: to_iso(AHEAD + until)}
    return call("heartbeat", agent, began, began + 0.1, lease_tokens=[token(fence)], answer={"leases_renewed": renewed})


def cancel(began: float) -> Call:
    return call("cancel", "lead", began, began + 0.1, task_id=T)


def life(*entries: tuple[Any, ...], task: str = T, **fields: Any) -> TaskRecord:
    """A task from its history entries: (op, when, agent, fence, attempt)."""
    ops = [Entry(op, AHEAD + at, *rest) for op, at, *rest in entries]
    fences = [entry.fence for entry in ops if entry.op in {"leased", "resumed"}]
    state = ops[-1].op if ops else "pending"
    made: dict[str, Any] = {"state": state, "entries": tuple(ops), "fence": fences[-1] if fences else None}
    return TaskRecord(task, **{**made, **fields})


def evidence(calls: list[Call], *tasks: TaskRecord, **more: Any) -> Evidence:
    audit = Counter(("complete_task", task.id) for task in tasks for entry in task.entries if entry.op == "completed")
    given: dict[str, Any] = {"audit": audit, "clock": Clock(AHEAD, AHEAD), **more}
    return Evidence(sorted(calls, key=lambda made: made.began), {task.id: task for task in tasks}, **given)


GOOD_CALLS = [
    submit(),
    claim("a", 1, 1.0, until=3.0),
    renew("a", 1, 2.0, until=4.0),
    claim("b", 2, 5.0, until=7.0),
    refused(complete("a", 1, 5.5)),
    fail("b", 2, 6.0),
    claim("a", 3, 7.0, until=9.0),
    complete("a", 3, 8.0),
]
GOOD_LIFE = life(
    ("submitted", 0.05, "lead"),
    ("assigned", 0.05, "a"),
    ("leased", 1.05, "a", 1, 1),
    ("expired", 4.2, "a", 1, 1),
    ("leased", 5.05, "b", 2, 1),
    ("failed", 6.05, "b", 2, 1),
    ("leased", 7.05, "a", 3, 2),
    ("completed", 8.05, "a", 3, 2),
)


def rules(found: Evidence) -> set[str]:
    """The rules that were broken."""
    return {violation.rule for violation in checker.violations(found)}


def test_valid_history_is_accepted() -> None:
    assert checker.violations(evidence(GOOD_CALLS, GOOD_LIFE)) == []


def test_call_with_unknown_outcome_may_have_had_its_effect() -> None:
    *before, last = GOOD_CALLS
    done = evidence([*before, unknown(last)], GOOD_LIFE)
    undone = evidence(
        [*before, unknown(last), claim("b", 4, 9.5, until=11.0), complete("b", 4, 10.0)],
        life(
            *[(e.op, e.at - AHEAD, e.agent, e.fence, e.attempt) for e in GOOD_LIFE.entries[:-1]],
            ("expired", 9.3, "a", 3, 2),
            ("leased", 9.55, "b", 4, 2),
            ("completed", 10.05, "b", 4, 2),
        ),
    )
    killed = evidence([submit(), unknown(claim("a", 1, 1.0, 3.0))], life(
        ("submitted", 0.05), ("leased", 1.05, "a", 1, 1), ("expired", 3.1, "a", 1, 1), ("dead", 3.1)
    ))  # fmt: skip
    renewed = evidence(
        [submit(), claim("a", 1, 1.0, 3.0), unknown(renew("a", 1, 2.0, 4.0)), complete("a", 1, 3.5)],
        life(("submitted", 0.05), ("leased", 1.05, "a", 1, 1), ("completed", 3.55, "a", 1, 1)),
    )
    shown = evidence(
        [submit(), unknown(claim("a", 1, 1.0, 3.0)), shows("a", 1, 2.0, 4.0), complete("a", 1, 3.5)],
        life(("submitted", 0.05), ("leased", 1.05, "a", 1, 1), ("completed", 3.55, "a", 1, 1)),
    )
    for found in (done, undone, killed, renewed, shown):
        assert checker.violations(found) == []


LATE: dict[str, tuple[list[Call], list[tuple[Any, ...]]]] = {
    "completion after the lease expired": (
        [claim("a", 1, 1.0, until=3.0), complete("a", 1, 4.0)],
        [("leased", 1.05, "a", 1, 1), ("expired", 3.1, "a", 1, 1), ("completed", 4.05, "a", 1, 1)],
    ),
    "completion while the task is assigned to another": (
        [claim("a", 1, 1.0, until=3.0), complete("a", 1, 4.0)],
        [
            *[("leased", 1.05, "a", 1, 1), ("expired", 3.1, "a", 1, 1), ("assigned", 3.1, "b")],
            ("completed", 4.05, "a", 1, 1),
        ],
    ),
    "completion after a failure": (
        [claim("a", 1, 1.0, until=3.0), fail("a", 1, 2.0), complete("a", 1, 4.0)],
        [("leased", 1.05, "a", 1, 1), ("failed", 2.05, "a", 1, 1), ("completed", 4.05, "a", 1, 1)],
    ),
    "failure after the lease expired": (
        [claim("a", 1, 1.0, until=3.0), fail("a", 1, 4.0), claim("b", 2, 5.0, until=7.0), complete("b", 2, 6.0)],
        [
            *[("leased", 1.05, "a", 1, 1), ("expired", 3.1, "a", 1, 1), ("failed", 4.05, "a", 1, 1)],
            *[("leased", 5.05, "b", 2, 2), ("completed", 6.05, "b", 2, 2)],
        ],
    ),
    "a lease that another session took over": (
        [claim("a", 1, 1.0, until=9.0), claim("a", 2, 2.0, until=9.0), complete("a", 2, 3.0)],
        [("leased", 1.05, "a", 1, 1), ("resumed", 2.05, "a", 2, 1), ("completed", 3.05, "a", 2, 1)],
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_late_end_and_resumed_lease_are_valid(case: str) -> None:
    calls, entries = LATE[case]
    assert checker.violations(evidence([submit(), *calls], life(("submitted", 0.05, "lead"), *entries))) == []


def test_wall_clock_jump_is_not_reported() -> None:
    calls = [submit(), claim("a", 1, 1.0, until=3.0), claim("b", 2, 2.8, until=4.8), complete("b", 2, 3.0)]
    kept = life(
        *[("submitted", 0.05), ("leased", 1.05, "a", 1, 1), ("expired", 3.01, "a", 1, 1)],
        *[("leased", 3.01, "b", 2, 1), ("completed", 3.1, "b", 2, 1)],
    )
    assert "two leases at once" in rules(evidence(calls, kept))
    assert rules(evidence(calls, kept, clock=Clock(AHEAD, AHEAD + 0.2))) == set()


def _without(op: str, position: int) -> list[tuple[Any, ...]]:
    """The valid history without one entry."""
    rows = [(e.op, e.at - AHEAD, e.agent, e.fence, e.attempt) for e in GOOD_LIFE.entries]
    assert rows[position][0] == op
    return rows[:position] + rows[position + 1 :]


LEASED = [("submitted", 0.05), ("leased", 1.05, "a", 1, 1)]
BAD: dict[str, tuple[str, Callable[[], Evidence]]] = {
    "a lease after completion": (
        "illegal transition",
        lambda: evidence([], life(*LEASED, ("completed", 2.0, "a", 1, 1), ("leased", 3.0, "b", 2, 2))),
    ),
    "a lease given while another is in force": (
        "illegal transition",
        lambda: evidence(GOOD_CALLS, life(*_without("expired", 3))),
    ),
    "a completion without a lease": (
        "illegal transition",
        lambda: evidence([], life(("submitted", 0.0), ("completed", 1.0, "a", 1, 1))),
    ),
    "a history without a submission": ("illegal transition", lambda: evidence([], life(("leased", 1.0, "a", 1, 1)))),
    "a cancelled task that is retried": (
        "illegal transition",
        lambda: evidence([], life(*LEASED, ("cancelled", 2.0), ("requeued", 3.0), ("dead", 4.0))),
    ),
    "a task that never ends": ("task without end", lambda: evidence([], life(*LEASED, state="leased"))),
    "a task that ended and is leased": (
        "task without end",
        lambda: evidence([], life(*LEASED, ("completed", 2.0, "a", 1, 1), state="leased")),
    ),
    "a state that differs from the last entry": (
        "state differs from history",
        lambda: evidence([], life(*LEASED, ("completed", 2.0, "a", 1, 1), state="dead")),
    ),
    "two terminal entries": (
        "more than one end",
        lambda: evidence([], life(*LEASED, ("completed", 2.0, "a", 1, 1), ("cancelled", 2.1))),
    ),
    "an ended task that is still queued": (
        "left in a queue",
        lambda: evidence(GOOD_CALLS, GOOD_LIFE, leftovers=Leftovers((("leases", T),))),
    ),
    "an acknowledged task that is gone": ("lost submission", lambda: evidence([submit(task="t2")])),
    "an uncounted attempt": (
        "attempts miscounted",
        lambda: evidence([], life(*LEASED, ("failed", 4.0, "a", 1, 1), ("leased", 5.0, "a", 2, 1), ("dead", 6.0))),
    ),
    "an attempt for an expired lease": (
        "attempts miscounted",
        lambda: evidence([], life(*LEASED, ("expired", 4.0, "a", 1, 1), ("leased", 5.0, "a", 2, 2), ("dead", 6.0))),
    ),
    "an attempt that failed twice": (
        "attempt ended twice",
        lambda: evidence(
            [], life(*LEASED, ("failed", 4.0, "a", 1, 1), ("assigned", 5.0, "a"), ("failed", 6.0, "a", 1, 1))
        ),
    ),
    "a late completion of a task that was requeued": (
        "attempt ended by another agent",
        lambda: evidence(
            [],
            life(
                *[*LEASED, ("expired", 4.0, "a", 1, 1), ("dead", 5.0), ("requeued", 6.0), ("assigned", 6.0, "b")],
                ("completed", 7.0, "a", 1, 1),
            ),
        ),
    ),
    "a late completion of a dead task": (
        "illegal transition",
        lambda: evidence([], life(*LEASED, ("expired", 4.0, "a", 1, 1), ("dead", 5.0), ("completed", 7.0, "a", 1, 1))),
    ),
    "more attempts than allowed": (
        "too many attempts",
        lambda: evidence(GOOD_CALLS, replace(GOOD_LIFE, max_retries=0)),
    ),
    "an attempt ended by another agent": (
        "attempt ended by another agent",
        lambda: evidence([], life(*LEASED, ("completed", 2.0, "b", 1, 1))),
    ),
    "an end with the fence of an earlier attempt": (
        "attempt ended by another agent",
        lambda: evidence(
            [], life(*LEASED, ("expired", 4.0, "a", 1, 1), ("leased", 5.0, "a", 2, 1), ("failed", 6.0, "a", 1, 1))
        ),
    ),
    "decreasing fences of one task": (
        "fence does not increase",
        lambda: evidence([], life(*LEASED, ("expired", 4.0, "a", 1, 1), ("leased", 5.0, "a", 0, 2), ("dead", 6.0))),
    ),
    "decreasing fences across two tasks": (
        "fence does not increase",
        lambda: evidence(
            [],
            life(("submitted", 0.0), ("leased", 1.0, "a", 2, 1), ("dead", 9.0)),
            life(("submitted", 0.0), ("leased", 2.0, "b", 1, 1), ("dead", 9.0), task="t2"),
        ),
    ),
    "a later claim with the lower token": (
        "fence does not increase",
        lambda: evidence([claim("a", 2, 1.0, 3.0), claim("b", 1, 2.0, 4.0, task="t2")]),
    ),
    "a task whose token differs from its lease": (
        "fence does not increase",
        lambda: evidence([], replace(GOOD_LIFE, fence=2)),
    ),
    "one fence for two leases": (
        "fence used twice",
        lambda: evidence(
            [],
            life(*LEASED, ("dead", 9.0)),
            life(("submitted", 0.0), ("leased", 2.0, "b", 1, 1), ("dead", 9.0), task="t2"),
        ),
    ),
    "a lease before its dependency completed": (
        "leased before its dependency completed",
        lambda: evidence(
            [],
            life(*LEASED, ("completed", 2.0, "a", 1, 1), depends_on=("t2",)),
            life(("submitted", 0.0), ("leased", 1.5, "b", 2, 1), ("completed", 3.0, "b", 2, 1), task="t2"),
        ),
    ),
    "a lease although its dependency failed": (
        "leased before its dependency completed",
        lambda: evidence(
            [],
            life(*LEASED, ("completed", 2.0, "a", 1, 1), depends_on=("t2",)),
            life(("submitted", 0.0), ("dead", 0.5), task="t2"),
        ),
    ),
    "a completion with a superseded token": (
        "stale token accepted",
        lambda: evidence([*GOOD_CALLS, complete("a", 1, 5.4)], GOOD_LIFE),
    ),
    "a renewal with a superseded token": (
        "stale token accepted",
        lambda: evidence([*GOOD_CALLS, renew("a", 1, 5.4, until=8.0)], GOOD_LIFE),
    ),
    "a failure reported with a superseded token": (
        "stale token accepted",
        lambda: evidence([*GOOD_CALLS, fail("a", 1, 5.4)], GOOD_LIFE),
    ),
    "a failure reported after completion": (
        "stale token accepted",
        lambda: evidence([*GOOD_CALLS, fail("a", 3, 8.5)], GOOD_LIFE),
    ),
    "a late completion after another was given the task": (
        "stale token accepted",
        lambda: evidence(
            [submit(), claim("a", 1, 1.0, until=3.0), claim("b", 2, 3.5, until=5.5), complete("a", 1, 4.0)],
            life(*LEASED, ("expired", 3.1, "a", 1, 1), ("leased", 3.55, "b", 2, 1), ("completed", 4.05, "a", 1, 1)),
        ),
    ),
    "a completion after the failure that ended the task": (
        "stale token accepted",
        lambda: evidence(
            [submit(), claim("a", 1, 1.0, until=3.0), dead(fail("a", 1, 2.0)), complete("a", 1, 2.5)],
            life(*LEASED, ("failed", 2.05, "a", 1, 1), ("completed", 2.55, "a", 1, 1)),
        ),
    ),
    "an old token after another session took the task over": (
        "stale token accepted",
        lambda: evidence(
            [submit(), claim("a", 1, 1.0, until=9.0), claim("a", 2, 2.0, until=9.0), complete("a", 1, 3.0)],
            life(*LEASED, ("resumed", 2.05, "a", 2, 1), ("completed", 3.05, "a", 1, 1)),
        ),
    ),
    "a completion after cancellation": (
        "stale token accepted",
        lambda: evidence([*GOOD_CALLS, cancel(7.5)], GOOD_LIFE),
    ),
    "a token that was never issued": (
        "forged token accepted",
        lambda: evidence([submit(), complete("a", 1, 2.0)], life(*LEASED, ("completed", 2.05, "a", 1, 1))),
    ),
    "a token used by another": (
        "forged token accepted",
        lambda: evidence([*GOOD_CALLS[:-1], complete("b", 3, 8.0)], GOOD_LIFE),
    ),
    "two leases at once": (
        "two leases at once",
        lambda: evidence([claim("a", 1, 1.0, until=3.0), claim("b", 2, 2.0, until=4.0)], GOOD_LIFE),
    ),
    "two leases at once after a renewal": (
        "two leases at once",
        lambda: evidence([claim("a", 1, 1.0, 3.0), renew("a", 1, 2.0, 4.0), claim("b", 2, 3.5, 5.0)], GOOD_LIFE),
    ),
    "a lease cut short": (
        "lease ended too early",
        lambda: evidence([claim("a", 1, 1.0, until=3.0)], life(*LEASED, ("expired", 2.5, "a", 1, 1), ("dead", 2.5))),
    ),
    "a lease cut short after it was shown": (
        "lease ended too early",
        lambda: evidence(
            [claim("a", 1, 1.0, until=3.0), shows("a", 1, 2.0, until=5.0)],
            life(*LEASED, ("expired", 4.0, "a", 1, 1), ("dead", 4.0)),
        ),
    ),
    "a lease taken from an agent that has not left": (
        "lease taken from an agent",
        lambda: evidence(
            [call("register", "a", 0.0, 0.1, heartbeat_seconds=5.0), claim("a", 1, 1.0, until=30.0)],
            life(*LEASED, ("lost", 9.0, "a", 1, 1), ("dead", 9.0)),
        ),
    ),
    "two completions answered": (
        "completed twice",
        lambda: evidence([*GOOD_CALLS, complete("a", 3, 8.05)], GOOD_LIFE),
    ),
    "two completions in the audit": (
        "completed twice",
        lambda: evidence(GOOD_CALLS, GOOD_LIFE, audit=Counter({("complete_task", T): 2})),
    ),
    "a completion missing from the audit": (
        "completion lost",
        lambda: evidence(GOOD_CALLS, GOOD_LIFE, audit=Counter()),
    ),
    "a completion that Redis forgot": (
        "acknowledged but not recorded",
        lambda: evidence(GOOD_CALLS, life(*_without("completed", 7), ("dead", 9.0))),
    ),
    "a lease that Redis forgot": (
        "acknowledged but not recorded",
        lambda: evidence([claim("a", 9, 9.0, until=11.0)], life(*LEASED, ("dead", 12.0))),
    ),
    "a lease that was shown and never requested": (
        "recorded but never requested",
        lambda: evidence([submit(), shows("a", 1, 2.0, until=4.0)], life(*LEASED, ("dead", 5.0))),
    ),
    "a failure without a report": (
        "recorded but never requested",
        lambda: evidence([made for made in GOOD_CALLS if made.op != "fail"], GOOD_LIFE),
    ),
    "a refused completion that took effect": (
        "recorded but never requested",
        lambda: evidence([*GOOD_CALLS[:-1], refused(GOOD_CALLS[-1])], GOOD_LIFE),
    ),
    "a lease after cancellation": (
        "leased after it was cancelled",
        lambda: evidence([cancel(0.5), claim("a", 1, 1.0, until=3.0)], life(*LEASED, ("cancelled", 2.0))),
    ),
    "a cancelled task that completed": (
        "cancellation lost",
        lambda: evidence([*GOOD_CALLS, cancel(8.2)], GOOD_LIFE),
    ),
    "an unexpected error": (
        "untyped error",
        lambda: evidence([*GOOD_CALLS, refused(complete("a", 3, 8.5), "internal")], GOOD_LIFE),
    ),
}


@pytest.mark.parametrize("history_of", BAD)
def test_invalid_history_is_reported(history_of: str) -> None:
    rule, made = BAD[history_of]
    assert rule in rules(made())


def test_every_rule_is_broken_by_some_history() -> None:
    bad = [made() for _, made in BAD.values()]
    assert [rule.__name__ for rule in checker.RULES if not any(list(rule(found)) for found in bad)] == []


async def test_recorded_history_keeps_calls_with_unknown_outcome(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "w1.0")

    async def raising(error: Exception) -> dict[str, Any]:
        raise error

    async def answering() -> dict[str, Any]:
        return {"tasks": []}

    assert await recorder.call("claim", "w1", {"limit": 1}, answering) == {"tasks": []}
    for error in (LeaseLost("late"), OutcomeUnknown("broken")):
        with pytest.raises(Refusal):
            await recorder.call("complete", "w1", {}, lambda error=error: raising(error))
    dying = asyncio.create_task(recorder.call("claim", "w1", {}, asyncio.Event().wait))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    dying.cancel()
    await asyncio.wait([dying])
    with (tmp_path / "w1.0.jsonl").open("a") as torn:
        torn.write(json.dumps({"call": 9, "kind": "invoke"})[:-3])

    calls, clock = history.load(tmp_path)
    assert [(made.op, made.outcome, made.answer.get("code")) for made in calls] == [
        ("claim", "ok", None),
        ("complete", "fail", "lease_lost"),
        ("complete", "unknown", "outcome_unknown"),
        ("claim", "unknown", None),
    ]
    assert [math.isinf(made.ended) for made in calls] == [False, False, True, True]
    assert 0 <= clock.uncertainty < 60
