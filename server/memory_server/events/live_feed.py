"""Live feeds: a namespace's events for the dashboard, and changes of resources for their subscribers.

A subscriber receives a change only if it may read the resource at that time. A subscriber of an unknown or forbidden
resource receives nothing, so that the two look the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from memory_core.errors import MemoryServiceError
from memory_core.records.agent import held_since
from memory_core.records.keys import Keys
from memory_server.contract.events import Event
from memory_server.engine.principals import resolve
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import RequestContext
from memory_server.events.entries import MEMORY, EventEntry, parse_entries
from memory_server.events.listeners import Audience, Follower, Watcher
from memory_server.events.services import EventServices
from memory_server.events.waiting import event_of, last_position, readable

_MAX_EVENTS = 200
"""Events of one page; further ones are only counted."""
_RECENT = 40
_PAGE = 1000
_RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Events, oldest first, and how many more there were. With `recent`, they are from before the feed began."""

    events: Sequence[Event]
    more: int = 0
    recent: bool = False


async def watching(
    service: EventServices, request: RequestContext, pause_seconds: float, gather_seconds: float
) -> AsyncGenerator[FeedPage]:
    """Give the latest events that the caller may see, then new ones as they happen.

    A page gathers events for `gather_seconds`. After `pause_seconds` without any, an empty page follows. The feed ends
    when the server stops.

    Raises:
        StoreUnavailable: Redis does not answer at the beginning.
    """
    keys = Keys(request.caller.namespace)
    since = await service.backend.read(
        lambda client: held_since(client, keys, request.caller.agent, service.backend.integrity)
    )
    watcher = Watcher(request.caller.agent, sees_all=request.caller.oversees, since=since)
    end = await last_position(service.backend, request.caller.namespace)
    with service.events.listening(request.caller.namespace, watcher, end) as audience:
        feed = _Feed(service, request, watcher, audience)
        yield FeedPage(await feed.recent(), recent=True)
        while not watcher.closed:
            woken = await watcher.wait(pause_seconds)
            if woken:
                await asyncio.sleep(gather_seconds)
            page = await feed.next_page()
            if page.events or page.more or not woken:
                yield page


@dataclass(frozen=True, slots=True)
class _Feed:
    service: EventServices
    request: RequestContext
    watcher: Watcher
    audience: Audience

    async def recent(self) -> list[Event]:
        """Read back as far as needed, so that the result does not reveal how active other agents were."""
        key, found, end = Keys(self.request.caller.namespace).events, list[EventEntry](), "+"
        while True:
            rows = await self.service.backend.read(lambda client, end=end: client.xrevrange(key, max=end, count=_PAGE))
            page = [entry for entry in parse_entries(reversed(rows)) if self.watcher.concerns(entry)]
            found = await self._allowed(page) + found
            if len(found) >= _RECENT or len(rows) < _PAGE:
                return list(map(event_of, found[-_RECENT:]))
            end = f"({rows[-1][0].decode()}"

    async def next_page(self) -> FeedPage:
        """Take the queued entries that the caller may see now; while Redis is down the page is empty."""
        entries = list(self.watcher.queue)
        self.watcher.queue.clear()
        lost, self.watcher.overflown = self.watcher.overflown, False
        more = max(len(entries) - _MAX_EVENTS, 0) + lost
        try:
            newest = await self._allowed(entries[-_MAX_EVENTS:])
        except MemoryServiceError:
            return FeedPage([], 1)
        return FeedPage(list(map(event_of, newest)), more)

    async def _allowed(self, entries: list[EventEntry]) -> list[EventEntry]:
        if self.request.caller.oversees or (not entries and not self.watcher.is_stale):
            return entries
        doubts = self.watcher.doubts
        principal = await resolve(self.service.backend, self.request)
        self.audience.trust(self.watcher, principal.tokens, doubts)
        if all(entry.kind != MEMORY for entry in entries):
            return entries
        return await readable(self.service.backend, self.request, principal, entries)


@asynccontextmanager
async def following(
    service: EventServices, request: RequestContext, uris: frozenset[str]
) -> AsyncGenerator[AsyncIterator[str]]:
    """Give the URIs of resources that change from now on, until the block or the server ends.

    Raises:
        StoreUnavailable: Redis does not answer. QuotaExceeded: the agent follows too many.
    """
    end = await last_position(service.backend, request.caller.namespace)
    follower = Follower(request.caller.agent, uris)
    with service.events.listening(request.caller.namespace, follower, end):
        yield _changes(service.backend, request, follower)


async def _changes(backend: Backend, request: RequestContext, follower: Follower) -> AsyncIterator[str]:
    while not follower.closed:
        await follower.wait()
        for entry in await _readable(backend, request, follower.take()):
            if entry.uri:
                yield entry.uri


async def _readable(backend: Backend, request: RequestContext, entries: list[EventEntry]) -> list[EventEntry]:
    """Keep the entries that the caller may read, retrying until Redis answers."""
    while entries:
        try:
            return await readable(backend, request, await resolve(backend, request), entries)
        except MemoryServiceError:
            await asyncio.sleep(_RETRY_SECONDS)
    return []
