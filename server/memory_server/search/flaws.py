"""Gathers which memories were left out of an answer because their records are not to be believed, so that it says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from memory_core.errors import Tampered
from memory_core.integrity import Flaw
from memory_server.results.answer import Answer

if TYPE_CHECKING:
    from memory_server.service import Service

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


def tells_of_flaws(
    use_case: Callable[Concatenate[Service, P], Awaitable[A]],
) -> Callable[Concatenate[Service, P], Awaitable[A]]:
    """Have the answer of a use case say what it left out."""

    @wraps(use_case)
    async def telling(service: Service, *args: P.args, **kwargs: P.kwargs) -> A:
        with noting() as found:
            answer = await use_case(service, *args, **kwargs)
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
    told = [
        (altered, "fail their integrity check", _ALTERED_HINT),
        (unsigned, "have no integrity code", _UNSIGNED_HINT),
    ]
    return [f"left out because they {what}: {number} memories; {hint}" for number, what, hint in told if number]
