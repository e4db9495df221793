"""Looking on: what happens in a namespace, told to a dashboard as it happens, an agent's own doings included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import cast

from memory_core.errors import MemoryServiceError
from memory_server.events.entries import DELETED, MEMORY, Entry
from memory_server.events.listeners import Watcher
from memory_server.events.room import Room
from memory_server.results.events import Event, EventKind
from memory_server.service import Service
from memory_server.usecases.principals import Caller, resolve
from memory_server.usecases.waiting import last_position, readable

_MOST = 200
"""Events told at once; of more only the number."""


async def watching(
    service: Service, caller: Caller, pause_seconds: float, gather_seconds: float
) -> AsyncGenerator[tuple[list[Event], int]]:
    """Give what happens from now on that the caller may see, and how much more.

    What comes within `gather_seconds` is given at once; after each pause it gives something, even if that is nothing.
    It ends when the server stops.

    Raises:
        StoreUnavailable: Redis does not answer at the beginning.
    """
    watcher = Watcher(caller.agent, sees_all=caller.admin)
    end = await last_position(service, caller.namespace)
    with service.events.listening(caller.namespace, watcher, end) as room:
        while not watcher.closed:
            yield await _seen(service, caller, watcher, room)
            if await watcher.wait(pause_seconds):
                await asyncio.sleep(gather_seconds)


async def _seen(service: Service, caller: Caller, watcher: Watcher, room: Room) -> tuple[list[Event], int]:
    """Take what was offered; what the caller may not see now is left out, and nothing is told while Redis is silent."""
    entries = list(watcher.queue)
    watcher.queue.clear()
    lost, watcher.overflown = watcher.overflown, False
    newest, more = entries[-_MOST:], max(len(entries) - _MOST, 0) + lost
    if not caller.admin:
        try:
            newest = await _allowed(service, caller, watcher, room, newest)
        except MemoryServiceError:
            return [], 1
    return [_event(entry) for entry in newest], more


async def _allowed(service: Service, caller: Caller, watcher: Watcher, room: Room, entries: list[Entry]) -> list[Entry]:
    if not entries and not watcher.is_stale:
        return []
    doubts = watcher.doubts
    principal = await resolve(service.backend, caller)
    room.trust(watcher, principal.tokens, doubts)
    if all(entry.kind != MEMORY for entry in entries):
        return entries
    return await readable(service, principal, entries)


def _event(entry: Entry) -> Event:
    return Event(
        kind=cast(EventKind, entry.kind),
        op=entry.op,
        id=entry.subject,
        by=entry.by or None,
        at=entry.position.at,
        uri=None if entry.op == DELETED else entry.uri,
    )
