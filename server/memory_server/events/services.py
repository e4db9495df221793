"""The parts of a server process that waiting for events uses."""

from __future__ import annotations

from typing import Protocol

from memory_server.events.hub import Hub
from memory_server.events.match_log import MatchLog
from memory_server.events.positions import Positions
from memory_server.search.services import SearchServices


class EventServices(SearchServices, Protocol):
    """Searches, the event streams, each agent's cursor, and which matches were reported."""

    events: Hub
    positions: Positions
    matches: MatchLog
