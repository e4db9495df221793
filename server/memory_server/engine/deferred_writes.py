"""The writes of a batch, which wait for the disk together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """A revision of a memory that Redis acknowledged."""

    namespace: str
    memory_id: str
    rev: int


class DeferredWrites:
    """The writes of a batch, which waits for all of them together at its end."""

    def __init__(self) -> None:
        self.written: dict[str, Written] = {}
        self.wanted = False

    def add(self, written: Written, wanted: bool) -> None:
        """Note a write, the last of its memory so far."""
        self.written[written.memory_id] = written
        self.wanted = self.wanted or wanted
