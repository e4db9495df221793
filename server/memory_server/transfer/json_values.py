"""Reads the JSON values of a file: one document, lines, or values one after another, as UTF-8, UTF-16 or UTF-32."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from memory_core.records.bounded_json import has_too_many_values

MAX_TOKENS = 50_000_000
_BETWEEN = re.compile(r"[\s,\x1e\ufeff]*")
"""Between values: white space, the commas of an array without brackets, and record separators."""
_START = re.compile(r"\n(?=[\[{])")
"""The start of a value at the beginning of a line. The inner lines of an indented document do not match."""
_COLON, _BRACKET = re.compile(r"\s*:\s*"), re.compile(r"\s*\]")
_PART = re.compile(r"""[\w.+\\"-]{0,12}\s{0,64}""")
"""What may be left where a number, a word or an escape is cut off."""
_CONVERSATION = re.compile(r'"(?:mapping|chat_messages)"\s*:')
_SEARCHED = 1 << 20
_LONGEST_LETTER = 4
"""Bytes of a letter."""
_DECODE = json.JSONDecoder().raw_decode
_MAX_REREAD = 8
"""How often damage may make the reader parse a text again, as a multiple of its length."""


@dataclass(frozen=True, slots=True)
class JsonValue:
    """A value and the number of the line where it starts."""

    line: int
    value: Any


@dataclass(frozen=True, slots=True)
class JsonDamage:
    """A line that cannot be read, and why."""

    line: int
    reason: str


def read_values(data: bytes) -> Iterator[JsonValue | JsonDamage]:
    """Yield the values of a file in order. After damage it continues with the next line that starts a value.

    Of a list that the file cuts off, the whole members are a value. The cost is linear in the size, damaged or not.
    """
    if has_too_many_values(data, MAX_TOKENS):
        yield JsonDamage(1, "it has too many JSON values")
        return
    try:
        text = _decoded(data)
    except UnicodeDecodeError:
        yield JsonDamage(1, "it is not UTF-8 text")
        return
    position, line, counted_to, number = _after(text, 0), 1, 0, 0
    left = _MAX_REREAD * len(text)
    while position < len(text):
        line, counted_to = line + text.count("\n", counted_to, position), position
        try:
            value, end = _DECODE(text, position)
        except (ValueError, RecursionError) as error:
            if _is_cut(text, error):
                yield from _cut_value(text, position, line, number)
                return
            left -= (error.pos if isinstance(error, json.JSONDecodeError) else len(text)) - position
            yield JsonDamage(line, "it is not JSON")
            if left < 0:
                yield JsonDamage(line, "it is too damaged to read on")
                return
            start = _START.search(text, position)
            position = start.end() if start else len(text)
        else:
            yield JsonValue(line, value)
            number, position = number + 1, _after(text, end)


def _decoded(data: bytes) -> str:
    """Decode a file, without the part of a letter at its end. Raises UnicodeDecodeError."""
    try:
        return data.decode(json.detect_encoding(data), "surrogatepass")
    except UnicodeDecodeError as error:
        if len(error.object) - error.start >= _LONGEST_LETTER:
            raise
        return error.object[: error.start].decode(error.encoding, "surrogatepass")


def _is_cut(text: str, error: Exception) -> bool:
    """Whether a text ends before its last value does."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or _PART.fullmatch(text, error.pos) is not None


def _cut_value(text: str, position: int, line: int, before: int) -> Iterator[JsonValue | JsonDamage]:
    """Yield what is whole of a value that the end of the file cuts off, and where; `before` are other values."""
    whole, number, is_between = (None, before, False) if before else _whole_part(text, position)
    if whole is not None:
        yield JsonValue(line, whole)
    kind = "conversation" if _CONVERSATION.search(text, 0, _SEARCHED) else "record"
    place = f"after {kind} {number}, without its end" if is_between else f"in the middle of {kind} {number + 1}"
    yield JsonDamage(line, f"the file ends {place}; {number:,} {'is' if number == 1 else 'are'} whole")


def _whole_part(text: str, position: int) -> tuple[Any, int, bool]:
    """Return the whole members of a list or of an object's lists, their number, and whether nothing follows them."""
    if text.startswith("[", position):
        members, end = _members(text, position + 1)
        return members, len(members), bool(members) and end == len(text)
    fields, end = dict[str, Any](), position + 1
    with suppress(ValueError, RecursionError, AttributeError):
        while True:
            key, end = _DECODE(text, _after(text, end))
            end = _COLON.match(text, end).end()  # type: ignore[union-attr]
            if text.startswith("[", end):
                fields[key], end = _members(text, end + 1)
                end = _BRACKET.match(text, end).end()  # type: ignore[union-attr]
            else:
                fields[key], end = _DECODE(text, end)
    number = sum(len(one) for one in fields.values() if isinstance(one, list) and isinstance(next(iter(one), 0), dict))
    return (fields if number else None), number, bool(number) and _after(text, end) == len(text)


def _members(text: str, position: int) -> tuple[list[Any], int]:
    """Return the whole members of a list that starts at a position, and where the rest begins."""
    members, end = list[Any](), _after(text, position)
    with suppress(ValueError, RecursionError):
        while True:
            member, end = _DECODE(text, end)
            members.append(member)
            end = _after(text, end)
    return members, end


def _after(text: str, position: int) -> int:
    """Return where the next value starts."""
    found = _BETWEEN.match(text, position)
    return found.end() if found else position
