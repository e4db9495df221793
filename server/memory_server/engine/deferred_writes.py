"""Collects the writes of a batch, which waits for the disk once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """A revision of a memory that Redis acknowledged."""

    namespace: str
    memory_id: str
    rev: int


class DeferredWrites:
    """The writes of a batch. `wait` says that one of them must be confirmed on disk."""

    def __init__(self) -> None:
        self.written: dict[str, Written] = {}
        self.wait = False

    def add(self, written: Written, wait: bool) -> None:
        """Record the latest write of a memory."""
        self.written[written.memory_id] = written
        self.wait = self.wait or wait
