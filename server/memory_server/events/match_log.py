"""Remembers where memories matched standing questions, so that one with many chunks is reported once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from memory_server.events.entries import Position

_MOST = 20_000


class MatchLog:
    """The position of the first match of a memory's revision with a question, for the latest matches of a process.

    A lost one only repeats an event, while the chunks of its memory get their vectors.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._first: OrderedDict[Hashable, tuple[int, Position]] = OrderedDict()

    def is_first(self, question: Hashable, memory_id: str, rev: int, position: Position) -> bool:
        """Note a match. Whether none of this revision was noted before this position: it is new, or asked for again."""
        key = question, memory_id
        known = self._first.get(key)
        if known and known[0] == rev and known[1] < position:
            return False
        self._first[key] = rev, position
        self._first.move_to_end(key)
        while len(self._first) > self._most:
            self._first.popitem(last=False)
        return True
