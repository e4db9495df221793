"""Fixtures for the dashboard: a server that requires tokens, and pages of it and of the session's server."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx2
import pytest_asyncio

from support.dashboard_helpers import Browser
from support.redis_users import SERVER
from support.stack import Server, Stack, in_own_task, serving


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(stack: Stack) -> AsyncGenerator[Server]:
    """A server that requires tokens."""
    url = stack.redis.url_of(SERVER)
    async with in_own_task(serving(url, auth={"mode": "tokens"}, embed_wait_seconds=15.0)) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def page(server: Server, namespace: str) -> AsyncGenerator[Browser]:
    """A page that acts as alice, on a server without authentication."""
    async with httpx2.AsyncClient() as client:
        yield Browser(server, client, f"?agent=alice&namespace={namespace}")


@pytest_asyncio.fixture(loop_scope="session")
async def stranger(guarded: Server) -> AsyncGenerator[Browser]:
    """A page without a login, on a server that requires tokens."""
    async with httpx2.AsyncClient() as client:
        yield Browser(guarded, client)
