"""Changes one member of a JSON text and no other byte: the user's formatting stays."""

from __future__ import annotations

import json
import re
from typing import Any

_WHITE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def with_member(text: str, section: str, name: str, value: Any) -> str:
    """Set `text[section][name]`, creating the section if it is missing.

    `text` and the section, if it exists, must be objects.
    """
    style = _Style(text)
    start = _skip(text, 0)
    found = _members(text, start)[0].get(section)
    if found is None:
        return _put(text, start, section, {name: value}, 0, style)
    return _put(text, found[0], name, value, 1, style)


class _Style:
    """The indentation and line ending of a text."""

    def __init__(self, text: str) -> None:
        first = re.match(r'\s*\{\s*?\n([ \t]+)"', text)
        self.indent = first[1] if first else "  "
        self.end = "\r\n" if "\r\n" in text else "\n"

    def line(self, depth: int) -> str:
        return self.end + self.indent * depth

    def write(self, value: Any, depth: int) -> str:
        return json.dumps(value, indent=self.indent, ensure_ascii=False).replace("\n", self.line(depth))


def _put(text: str, start: int, key: str, value: Any, depth: int, style: _Style) -> str:
    members, end = _members(text, start)
    if key in members:
        first, last = members[key]
        return text[:first] + style.write(value, depth + 1) + text[last:]
    member = f"{style.line(depth + 1)}{json.dumps(key, ensure_ascii=False)}: {style.write(value, depth + 1)}"
    if not members:
        return text[: start + 1] + member + style.line(depth) + text[end:]
    last = max(last for _, last in members.values())
    return f"{text[:last]},{member}{text[last:]}"


def _members(text: str, start: int) -> tuple[dict[str, tuple[int, int]], int]:
    """Return the start and end of each member's value, and the position of the closing brace."""
    members: dict[str, tuple[int, int]] = {}
    at = _skip(text, start + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        first = _skip(text, _skip(text, at) + 1)
        _, last = _DECODER.raw_decode(text, first)
        members[key] = first, last
        at = _skip(text, last)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return members, at


def _skip(text: str, at: int) -> int:
    found = _WHITE.match(text, at)
    return found.end() if found else at
