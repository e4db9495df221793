"""Fixtures for the dashboard: a server that requires tokens, and pages of it and of the session's server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest_asyncio

from support.dashboard_helpers import Browser
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Server, Stack, in_own_task, serving


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(stack: Stack) -> AsyncGenerator[Server]:
    """A server that requires tokens."""
    url = stack.redis.url_of(SERVER)
    settings: dict[str, Any] = {"auth": {"mode": "tokens"}, "master_key": MASTER_KEY, "embed_wait_seconds": 15.0}
    async with in_own_task(serving(url, **settings)) as server:
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
