"""The live feed of the dashboard: the events of a namespace as they happen, including the caller's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from memory_core.errors import MemoryServiceError
from memory_core.records.keys import Keys
from memory_core.store.streams import BadMessage
from memory_server.contract.events import Event
from memory_server.engine.backend import Backend
from memory_server.engine.principals import resolve
from memory_server.engine.request import RequestContext
from memory_server.events.audience import Audience
from memory_server.events.entries import MEMORY, Entry
from memory_server.events.listeners import Watcher
from memory_server.events.services import EventServices
from memory_server.events.waiting import event_of, last_position, readable

_MOST = 200
"""Events of one page; of further ones the feed gives only the number."""
_RECENT = 40
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Events, oldest first, and how many more there were; `recent` ones happened before the feed began."""

    events: Sequence[Event]
    more: int = 0
    recent: bool = False


async def watching(
    service: EventServices, request: RequestContext, pause_seconds: float, gather_seconds: float
) -> AsyncGenerator[FeedPage]:
    """Give what happened last that the caller may see, then what happens.

    What comes within `gather_seconds` is given at once; after each pause it gives something, even if that is nothing.
    It ends when the server stops.

    Raises:
        StoreUnavailable: Redis does not answer at the beginning.
    """
    watcher = Watcher(request.caller.agent, sees_all=request.caller.admin)
    end = await last_position(service.backend, request.caller.namespace)
    with service.events.listening(request.caller.namespace, watcher, end) as audience:
        yield FeedPage(await _recent(service.backend, request, watcher, audience), recent=True)
        while not watcher.closed:
            woken = await watcher.wait(pause_seconds)
            if woken:
                await asyncio.sleep(gather_seconds)
            page = await _offered(service.backend, request, watcher, audience)
            if page.events or page.more or not woken:
                yield page


async def _recent(backend: Backend, request: RequestContext, watcher: Watcher, audience: Audience) -> list[Event]:
    """Read back as far as it takes, so that the result does not reveal how active other agents were."""
    key, found, end = Keys(request.caller.namespace).events, list[Entry](), "+"
    while True:
        rows = await backend.read(lambda client, end=end: client.xrevrange(key, max=end, count=_PAGE))
        page: list[Entry] = []
        for entry_id, fields in reversed(rows):
            with suppress(BadMessage):
                page.append(Entry.parse(entry_id, fields))
        page = [entry for entry in page if watcher.concerns(entry)]
        found = await _allowed(backend, request, watcher, audience, page) + found
        if len(found) >= _RECENT or len(rows) < _PAGE:
            return list(map(event_of, found[-_RECENT:]))
        end = f"({rows[-1][0].decode()}"


async def _offered(backend: Backend, request: RequestContext, watcher: Watcher, audience: Audience) -> FeedPage:
    """Take the offered entries that the caller may see now; while Redis is down the page is empty."""
    entries = list(watcher.queue)
    watcher.queue.clear()
    lost, watcher.overflown = watcher.overflown, False
    more = max(len(entries) - _MOST, 0) + lost
    try:
        newest = await _allowed(backend, request, watcher, audience, entries[-_MOST:])
    except MemoryServiceError:
        return FeedPage([], 1)
    return FeedPage(list(map(event_of, newest)), more)


async def _allowed(
    backend: Backend, request: RequestContext, watcher: Watcher, audience: Audience, entries: list[Entry]
) -> list[Entry]:
    if request.caller.admin or (not entries and not watcher.is_stale):
        return entries
    doubts = watcher.doubts
    principal = await resolve(backend, request)
    audience.trust(watcher, principal.tokens, doubts)
    if all(entry.kind != MEMORY for entry in entries):
        return entries
    return await readable(backend, request, principal, entries)
