"""Writes the live feed as server-sent events; browsers reconnect automatically."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from memory_core.errors import MemoryServiceError
from memory_server.mcp import lazy

if TYPE_CHECKING:
    from memory_server.engine.request_context import RequestContext
    from memory_server.service import Service

PAUSE_SECONDS = 15.0
"""The longest silence of a stream; proxies close silent streams."""
_GATHER_SECONDS = 0.25
RETRY_MS = 3000


async def live_events(service: Service, request: RequestContext) -> AsyncGenerator[str]:
    """Yield the stream's text until the server stops or the caller is no longer admitted."""
    yield f"retry: {RETRY_MS}\nevent: open\ndata: {{}}\n\n"
    try:
        async for page in lazy.live_feed.watching(service, request, PAUSE_SECONDS, _GATHER_SECONDS):
            if not await request.is_still_admitted():
                yield "event: closed\ndata: {}\n\n"
                return
            if page.events or page.more:
                events = [event.model_dump(exclude_none=True) for event in page.events]
                name = "recent" if page.recent else "happened"
                yield f"event: {name}\ndata: {json.dumps({'events': events, 'more': page.more})}\n\n"
            else:
                yield ": here\n\n"
    except MemoryServiceError:
        return
