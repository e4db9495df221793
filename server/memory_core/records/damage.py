"""Reading records that may be damaged. Whoever reads many leaves out those that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from memory_core.records.codec import DecodeError

T = TypeVar("T")
UNREADABLE = (*DecodeError, LookupError, AttributeError)
"""What reading a damaged record raises."""
_WRONG_TYPE = "WRONGTYPE"


def is_wrong_type(error: Exception) -> bool:
    """Whether a command failed at a key of another type. In a pipeline, redis-py begins the text with the command."""
    return _WRONG_TYPE in str(error)


async def execute(pipe: Any) -> list[Any]:
    """Run a pipeline. A command at a key of another type answers with its error; all other errors are raised."""
    answers: list[Any] = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception) and not is_wrong_type(answer):
            raise answer
    return answers


def or_none(read: Callable[[], T]) -> T | None:
    """Return what `read` returns; None if what it reads is damaged."""
    try:
        return read()
    except UNREADABLE:
        return None
