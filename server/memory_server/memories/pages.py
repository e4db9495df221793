"""Cuts the content of a long memory into pages. All pages together are exactly the content."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from memory_core.errors import InvalidArgument
from memory_server.contract import cursors
from memory_server.contract.tokens import LEAST_CONTENT

Measure = Callable[[int, int], int]
"""Returns the tokens of an answer with the content from one position to another."""
MOST_CHARACTERS = 16
"""Characters that a token has at most, on average."""


def end_of_page(length: int, starts: Sequence[int], start: int, most: int, measure: Measure) -> int:
    """Return where the longest page from `start` ends that takes at most so many tokens.

    It ends at the end of a chunk if one fits that is not far too short, else within a chunk. It has at least one
    character.
    """
    limit = min(length, start + MOST_CHARACTERS * most)
    if limit == length and measure(start, length) <= most:
        return length
    borders = [border for border in starts[bisect_right(starts, start) :] if border <= limit]
    fitting = bisect_right(borders, most, key=lambda end: measure(start, end))
    if fitting and measure(start, borders[fitting - 1]) - measure(start, start + 1) >= LEAST_CONTENT // 2:
        return borders[fitting - 1]
    inside = range(start + 1, (borders[fitting] if fitting < len(borders) else limit) + 1)
    return inside[max(bisect_right(inside, most, key=lambda end: measure(start, end)) - 1, 0)]


def chunks_between(starts: Sequence[int], start: int, end: int) -> str:
    """Say which chunks a page shows, from 1."""
    first, last = bisect_right(starts, start), bisect_right(starts, end - 1)
    shown = str(first) if first == last else f"{first}–{last}"
    return f"{shown} of {len(starts)}"


def write_cursor(which: str, rev: int, position: int) -> str:
    return cursors.write(which, f"{rev}.{position}")


def read_cursor(cursor: str, which: str, rev: int, length: int) -> int:
    """Return the position of a cursor. Raises InvalidArgument if it is of another memory or of another revision."""
    of_rev, _, position = cursors.read(cursor, which).partition(".")
    if not (of_rev.isdecimal() and position.isdecimal() and len(of_rev) + len(position) < 32):
        raise cursors.unknown(cursor)
    if int(of_rev) != rev:
        hint = "read it again without a cursor"
        raise InvalidArgument(f"the memory was changed: the cursor is of revision {int(of_rev)}, not {rev}", hint=hint)
    if int(position) >= length:
        raise cursors.unknown(cursor)
    return int(position)
