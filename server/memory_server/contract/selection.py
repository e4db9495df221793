"""The filters that search and list tools share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memory_core.records.memory import MemoryType, Priority


@dataclass(frozen=True, slots=True)
class Selection:
    """The filters that search and list tools share, as callers give them."""

    agent_ids: Sequence[str] = ()
    memory_types: Sequence[MemoryType] = ()
    priorities: Sequence[Priority] = ()
    tags: Sequence[str] = ()
    tag_match: Literal["any", "all"] = "any"
    context: str | None = None
    source: str | None = None
    since: str | float | None = None
    until: str | float | None = None
    include_archive: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is narrowed down."""
        named = (self.agent_ids, self.memory_types, self.priorities, self.tags, self.context, self.source)
        return not any(named) and self.since is None and self.until is None
