"""Has an answer say which memories were left out of it because their records are not to be believed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from memory_core.crypto.integrity import Flaw
from memory_core.errors import Tampered
from memory_server.contract.answer import Answer

P = ParamSpec("P")
A = TypeVar("A", bound=Answer)
_UNSIGNED_HINT = "an administrator can have them signed by `redis-memory integrity adopt`"
_ALTERED_HINT = "an administrator sees more in the log and by `redis-memory integrity verify`"
_noted: ContextVar[dict[str, Flaw] | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Generator[dict[str, Flaw]]:
    """Gather what `note` is told inside, by memory."""
    found: dict[str, Flaw] = {}
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def note(memory_id: str, flaw: Flaw) -> None:
    """Say that a memory which the caller could read is left out."""
    found = _noted.get()
    if found is not None:
        found[memory_id] = flaw


def tells_of_flaws(use_case: Callable[P, Awaitable[A]]) -> Callable[P, Awaitable[A]]:
    """Have the answer of a use case say what it left out."""

    @wraps(use_case)
    async def telling(*args: P.args, **kwargs: P.kwargs) -> A:
        with noting() as found:
            answer = await use_case(*args, **kwargs)
        if not found:
            return answer
        reasons = [answer.reason, *_reasons(found)]
        return answer.model_copy(update={"partial": True, "reason": "; ".join(filter(None, reasons))})

    return telling


def tampered(memory_id: str, flaw: Flaw) -> Tampered:
    """Refuse to show a memory."""
    if flaw is Flaw.UNSIGNED:
        return Tampered(f"memory {memory_id} has no integrity code", hint=_UNSIGNED_HINT)
    return Tampered(f"memory {memory_id} fails its integrity check and is not shown", hint=_ALTERED_HINT)


def _reasons(found: dict[str, Flaw]) -> list[str]:
    unsigned = sum(flaw is Flaw.UNSIGNED for flaw in found.values())
    altered = len(found) - unsigned
    reasons: list[str] = []
    if altered:
        reasons.append(f"{altered} memories fail the integrity check and are left out; {_ALTERED_HINT}")
    if unsigned:
        reasons.append(f"{unsigned} memories have no integrity code and are left out; {_UNSIGNED_HINT}")
    return reasons
