"""Resource subscriptions: a subscriber receives a change only if it may read the resource at that time.

A subscriber of an unknown or forbidden resource receives nothing, so that the two look the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from memory_core.errors import MemoryServiceError
from memory_server.engine.backend import Backend
from memory_server.engine.principals import resolve
from memory_server.engine.request import RequestContext
from memory_server.events.entries import Entry
from memory_server.events.listeners import Follower
from memory_server.events.services import EventServices
from memory_server.events.waiting import last_position, readable

_RETRY_SECONDS = 0.5


@asynccontextmanager
async def following(
    service: EventServices, request: RequestContext, uris: frozenset[str]
) -> AsyncGenerator[AsyncIterator[str]]:
    """Give the URIs of resources that change from now on, until the block or the server ends.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    end = await last_position(service.backend, request.caller.namespace)
    follower = Follower(uris)
    with service.events.listening(request.caller.namespace, follower, end):
        yield _changes(service.backend, request, follower)


async def _changes(backend: Backend, request: RequestContext, follower: Follower) -> AsyncIterator[str]:
    while not follower.closed:
        await follower.wait()
        for entry in await _readable(backend, request, follower.take()):
            if entry.uri:
                yield entry.uri


async def _readable(backend: Backend, request: RequestContext, entries: list[Entry]) -> list[Entry]:
    """Keep the entries that the caller may read, retrying until Redis answers."""
    while entries:
        try:
            return await readable(backend, request, await resolve(backend, request), entries)
        except MemoryServiceError:
            await asyncio.sleep(_RETRY_SECONDS)
    return []
