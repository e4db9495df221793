"""The requirements of a task. Tasks with the same requirements wait in one queue."""

from __future__ import annotations

from dataclasses import dataclass

from memory_core.records.codec import pack, unpack
from memory_core.records.keys import digest
from memory_core.records.names import SEPARATOR


@dataclass(frozen=True, slots=True)
class TaskKind:
    """What a task requires of its agent. `only` names a single agent."""

    capabilities: tuple[str, ...] = ()
    window: int = 0
    only: str = ""

    @property
    def spec(self) -> bytes:
        """The form that the Redis Functions read."""
        return pack({"capabilities": list(self.capabilities), "window": self.window, "only": self.only})

    @property
    def id(self) -> str:
        """The id used in keys."""
        return digest(SEPARATOR.join([*sorted(self.capabilities), str(self.window), self.only]))

    @classmethod
    def parse(cls, spec: bytes) -> TaskKind:
        found = unpack(spec)
        return cls(tuple(found["capabilities"]), int(found["window"]), found["only"])
