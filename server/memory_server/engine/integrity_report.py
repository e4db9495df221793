"""Reports the memories missing from an answer because their integrity check failed."""

from __future__ import annotations

from typing import TypeVar

from memory_core.errors import Tampered
from memory_core.records.authority_codes import IntegrityFailure
from memory_server.contract.answer import Answer
from memory_server.contract.untrusted_text import counted

A = TypeVar("A", bound=Answer)
_UNSIGNED_HINT = "an administrator can sign them with `redis-memory integrity adopt`"
_ALTERED_HINT = "an administrator sees details in the log and with `redis-memory integrity verify`"


class IntegrityReport:
    """The memories missing from one answer, each with the reason."""

    def __init__(self) -> None:
        self._failed: dict[str, IntegrityFailure] = {}

    def add(self, memory_id: str, failure: IntegrityFailure) -> None:
        self._failed[memory_id] = failure

    def check(self, memory_id: str) -> None:
        """Raise Tampered if a memory failed its check."""
        if memory_id in self._failed:
            raise tampered(memory_id, self._failed[memory_id])

    def applied_to(self, answer: A) -> A:
        """Mark an answer as partial if memories are missing from it."""
        if not self._failed:
            return answer
        unsigned = sum(failure is IntegrityFailure.UNSIGNED for failure in self._failed.values())
        reasons, altered = [answer.reason], len(self._failed) - unsigned
        if altered:
            failing = counted(
                altered, "memory fails the integrity check and is", "memories fail the integrity check and are"
            )
            reasons.append(f"{failing} left out; {_ALTERED_HINT}")
        if unsigned:
            lacking = counted(
                unsigned, "memory has no integrity code and is", "memories have no integrity code and are"
            )
            reasons.append(f"{lacking} left out; {_UNSIGNED_HINT}")
        return answer.model_copy(update={"partial": True, "reason": "; ".join(filter(None, reasons))})


def tampered(memory_id: str, failure: IntegrityFailure) -> Tampered:
    """Build the error for a memory that failed its check."""
    if failure is IntegrityFailure.UNSIGNED:
        return Tampered(f"memory {memory_id} has no integrity code", hint=_UNSIGNED_HINT)
    return Tampered(f"memory {memory_id} failed its integrity check and is not shown", hint=_ALTERED_HINT)
