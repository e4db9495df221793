"""Judges a run by all rules that tasks must keep, whatever was killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import effects, lifecycle
from .evidence import Evidence, Violation

RULES: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    lifecycle.transitions_are_legal,
    lifecycle.every_task_ends_once,
    lifecycle.submissions_are_kept,
    lifecycle.attempts_are_counted,
    lifecycle.tokens_rise,
    lifecycle.dependencies_come_first,
    effects.stale_tokens_have_no_effect,
    effects.one_lease_at_a_time,
    effects.leases_last_as_promised,
    effects.completed_once,
    effects.nothing_after_cancellation,
    effects.memories_agree,
    effects.refusals_are_typed,
)


def violations(evidence: Evidence) -> list[Violation]:
    """Give all that must not have happened; nothing for a run that kept the rules."""
    return [found for rule in RULES for found in rule(evidence)]
