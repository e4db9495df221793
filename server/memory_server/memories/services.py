"""The services that storing and changing memories needs."""

from __future__ import annotations

from typing import Protocol

from memory_server.engine.durability import Durability
from memory_server.memories.quotas import Quotas
from memory_server.search.services import SearchServices


class MemoryServices(SearchServices, Protocol):
    """Searches, quotas, durability and the sidecars' wake-up."""

    quotas: Quotas
    durability: Durability

    def ring(self, namespace: str) -> None:
        """Wake the sidecars soon because a namespace has embed jobs."""
