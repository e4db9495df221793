"""The parts of a server process that tasks and agents use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Protocol

from memory_core.records.agent import Agent
from memory_server.engine.presence import Presence
from memory_server.events.services import EventServices
from memory_server.memories.services import MemoryServices


class TaskServices(MemoryServices, EventServices, Protocol):
    """Memories, events and the cached agents of each namespace."""

    rosters: dict[str, tuple[float, list[Agent]]]
    presence: Presence

    def soon(self, key: Hashable, action: Callable[[], Awaitable[object]], seconds: float = ...) -> None:
        """Run an action shortly, once for all requests with the same key."""
