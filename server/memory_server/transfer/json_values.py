"""Reads the JSON values of a file: one document, lines, or values one after another, as UTF-8, UTF-16 or UTF-32."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memory_core.records.bounded_json import has_too_many_values

MAX_TOKENS = 50_000_000
_BETWEEN = re.compile(r"[\s,\x1e\ufeff]*")
"""Between values: white space, the commas of an array without brackets, and record separators."""
_START = re.compile(r"\n(?=[\[{])")
"""The start of a value at the beginning of a line. The inner lines of an indented document do not match."""
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

    The cost is linear in the size, damaged or not.
    """
    if has_too_many_values(data, MAX_TOKENS):
        yield JsonDamage(1, "it has too many JSON values")
        return
    try:
        text = data.decode(json.detect_encoding(data), "surrogatepass")
    except UnicodeDecodeError:
        yield JsonDamage(1, "it is not UTF-8 text")
        return
    decode, position, line, counted_to = json.JSONDecoder().raw_decode, _after(text, 0), 1, 0
    left = _MAX_REREAD * len(text)
    while position < len(text):
        line, counted_to = line + text.count("\n", counted_to, position), position
        try:
            value, end = decode(text, position)
        except (ValueError, RecursionError) as error:
            left -= (error.pos if isinstance(error, json.JSONDecodeError) else len(text)) - position
            yield JsonDamage(line, "it is not JSON")
            if left < 0:
                yield JsonDamage(line, "it is too damaged to read on")
                return
            start = _START.search(text, position)
            position = start.end() if start else len(text)
        else:
            yield JsonValue(line, value)
            position = _after(text, end)


def _after(text: str, position: int) -> int:
    """Return where the next value starts."""
    found = _BETWEEN.match(text, position)
    return found.end() if found else position
