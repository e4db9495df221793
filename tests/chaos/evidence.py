"""The evidence of a task run: recorded calls and what Redis stores, with leases and effects derived from the calls."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from memory_core.records.times import parse_time

from .history import Call, Clock
from .task_records import Leftovers, TaskRecord

Audit = Counter[tuple[str, str]]
LEASING = ("claim", "register")
"""Calls that give leases."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule."""

    rule: str
    task: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.task}: {self.what}"


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that a claim gave, or showed after the answer that gave it was lost. `until` uses Redis's clock."""

    task: str
    fence: int
    token: str
    agent: str
    until: float
    claim: Call
    is_given: bool = True


@dataclass(frozen=True, slots=True)
class Effect:
    """An accepted use of a token. `until` is the renewed end of the lease."""

    op: str
    task: str
    token: str
    call: Call
    until: float | None = None


def task_of(token: str) -> str:
    """The task of a token."""
    return token.partition(".")[0]


def fence_of(token: str) -> int:
    """The fence of a token."""
    return int(token.split(".")[1])


@dataclass(frozen=True)
class Evidence:
    """Everything known about a run."""

    calls: list[Call] = field(default_factory=list[Call])
    tasks: dict[str, TaskRecord] = field(default_factory=dict[str, TaskRecord])
    audit: Audit | None = None
    clock: Clock = Clock()  # noqa: RUF009 it is frozen
    leftovers: Leftovers = Leftovers()  # noqa: RUF009 it is frozen

    def of(self, op: str) -> Iterator[Call]:
        """The calls of one kind."""
        return (call for call in self.calls if call.op == op)

    @cached_property
    def leases(self) -> dict[str, Lease]:
        """Every lease that a claim or a registration returned, by token.

        If one was only shown, the claim that gave it may have begun at any time before.
        """
        given: dict[str, Lease] = {}
        shown: dict[str, Lease] = {}
        for call in self.calls:
            if call.is_ok and call.op in LEASING:
                given |= _listed(call, "tasks")
                shown = _listed(replace(call, began=-math.inf), "held") | shown
        return shown | given

    @cached_property
    def effects(self) -> list[Effect]:
        """Every accepted completion, failure and renewal."""
        found: list[Effect] = []
        for call in self.calls:
            if not call.is_ok:
                continue
            if call.op in {"complete", "fail"}:
                found.append(Effect(call.op, call.arguments["task_id"], call.arguments["lease_token"], call))
            elif call.op == "heartbeat":
                found += _renewals(call)
        return found

    @cached_property
    def leases_of(self) -> dict[str, list[Lease]]:
        """The leases of each task, by increasing fence."""
        found: dict[str, list[Lease]] = defaultdict(list)
        for lease in sorted(self.leases.values(), key=lambda lease: lease.fence):
            found[lease.task].append(lease)
        return found

    @cached_property
    def about(self) -> dict[str, list[Call]]:
        """The calls that may have ended each task or an attempt at it."""
        found: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            if call.op in {"complete", "fail", "cancel"} and call.may_have_worked:
                found[call.arguments["task_id"]].append(call)
        return found

    @cached_property
    def promised(self) -> dict[str, float]:
        """The latest end of each lease that any answer promised, by token, on Redis's clock."""
        found = {token: lease.until for token, lease in self.leases.items()}
        for call in self.calls:
            for lease in _listed(call, "held").values() if call.is_ok else ():
                found[lease.token] = max(found[lease.token], lease.until)
        for effect in self.effects:
            if effect.until is not None:
                found[effect.token] = max(found.get(effect.token, 0.0), effect.until)
        return found


def _listed(call: Call, part: str) -> dict[str, Lease]:
    """The leases in a part of an answer, by token: those that it gives, or those that the agent holds."""
    found: dict[str, Lease] = {}
    for task in call.answer.get(part, ()) if call.op in LEASING else ():
        token, until = task["lease_token"], parse_time(task["lease_until"], "lease_until")
        found[token] = Lease(task["task_id"], fence_of(token), token, call.agent, until, call, part == "tasks")
    return found


def _renewals(call: Call) -> Iterator[Effect]:
    """The answer names tasks. Of two tokens of one task, the newer one must be renewed."""
    tokens = {task_of(token): token for token in sorted(call.arguments["lease_tokens"], key=fence_of)}
    for task, until in call.answer.get("leases_renewed", {}).items():
        yield Effect("renew", task, tokens[task], call, parse_time(until, "leases_renewed"))
