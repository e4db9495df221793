"""Fixtures of the browser tests: one Chromium, and a team whose work fills the dashboard."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from support.stack import Server, Stack, in_own_task

if TYPE_CHECKING:
    from fill import Team
    from playwright.async_api import Browser

if importlib.util.find_spec("playwright") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncGenerator[Browser]:
    """The session's browser. Each test opens its own pages, logged out."""
    from pages import chromium

    async with in_own_task(chromium()) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def team(server: Server, stack: Stack, namespace: str) -> Team:
    """What three agents left in the test's namespace, with all vectors ready."""
    from fill import fill, has_vectors
    from support.embedder_fixtures import wait_until

    filled = await fill(server, namespace)
    await wait_until(lambda: has_vectors(server, namespace))
    return filled


@pytest.fixture
def address(server: Server, namespace: str) -> str:
    """The dashboard for the agent claude."""
    return f"{server.url}/?agent=claude&namespace={namespace}"
