"""Reads values as models and people write them: numbers such as `200k` and `1,000`, and choices such as `CRITICAL`.

Only what has one meaning is read. All else is left to validation, or refused with what to write.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticCustomError

from memory_core.records.ids import bare

Reader = Callable[[Any], Any]
_NUMBER = re.compile(
    r"([+-]?)([0-9]{1,3}(?:[,_][0-9]{3})+|[0-9]{1,15})(?:\.([0-9]{1,15}))?(?: ?([km]))?", re.IGNORECASE
)
_TIMES = {"": 1, "k": 1000, "m": 1_000_000}
_GROUP = 3
_MOST_CHARACTERS = 40


def reader_of(annotation: Any) -> Reader | None:
    """Return what reads the values of an argument of this type; None if they need no reading."""
    kinds = kinds_of(annotation)
    if kinds and all(kind in (int, float) for kind in kinds):
        return _whole_number if kinds == [int] else _number
    choices = [_choices(kind) for kind in kinds]
    if len(choices) == 1 and choices[0]:
        spoken = {_folded(choice): choice for choice in choices[0]}
        return lambda value: spoken.get(_folded(value), value) if isinstance(value, str) else value
    return None


def item_of(annotation: Any) -> Any:
    """Return the type of the items of a list; None for any other type."""
    kinds = kinds_of(annotation)
    return get_args(kinds[0])[0] if len(kinds) == 1 and get_origin(kinds[0]) is list else None


def kinds_of(annotation: Any) -> list[Any]:
    """Return the types that an argument may have, without null."""
    if get_origin(annotation) is Annotated:
        return kinds_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for one in get_args(annotation) if one is not type(None) for kind in kinds_of(one)]
    return [annotation]


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [choice for choice in get_args(kind) if isinstance(choice, str)]
    return [str(one.value) for one in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def _folded(text: str) -> str:
    return bare(text[:_MOST_CHARACTERS]).casefold().replace("-", "_").replace(" ", "_")


def _number(value: Any) -> Any:
    """Read a number in text; validation judges any other value."""
    read = _parse(value)
    return value if read is None else read[0]


def _whole_number(value: Any) -> Any:
    """Read a whole number. A point before three digits may also separate thousands, so such a number is refused."""
    read = _parse(value)
    if read is None and not isinstance(value, str):
        return value
    if read is None or isinstance(read[0], float) or read[1] == _GROUP:
        raise PydanticCustomError("whole_number", "write a whole number such as 20, 1,000 or 8k")
    return read[0]


def _parse(value: Any) -> tuple[int | float, int] | None:
    """Return the number in a text, and how many digits follow its point; None if it is no number."""
    text = bare(value) if isinstance(value, str) and len(value) <= _MOST_CHARACTERS else ""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, fraction, unit = match.groups(default="")
    number = Decimal(f"{sign}{whole.replace(',', '').replace('_', '')}.{fraction or 0}") * _TIMES[unit.lower()]
    return int(number) if number == number.to_integral_value() else float(number), len(fraction)
