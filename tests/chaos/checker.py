"""Checks a run against all rules of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import effects, lifecycle
from .evidence import Evidence, Violation

RULES: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    lifecycle.transitions_are_legal,
    lifecycle.every_task_ends_once,
    lifecycle.submissions_are_kept,
    lifecycle.attempts_are_counted,
    lifecycle.fences_increase,
    lifecycle.dependencies_come_first,
    effects.stale_tokens_have_no_effect,
    effects.one_lease_at_a_time,
    effects.leases_last_as_promised,
    effects.completed_once,
    effects.nothing_after_cancellation,
    effects.records_agree,
    effects.refusals_are_typed,
)


def violations(evidence: Evidence) -> list[Violation]:
    """All broken rules, in detail."""
    return [found for rule in RULES for found in rule(evidence)]
