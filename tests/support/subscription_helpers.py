"""Subscribes to resources and waits for updates."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mcp.shared.exceptions import MCPDeprecationWarning
from mcp_types import ResourceUpdatedNotification

from support.stack import Agent


def updated(changed: list[str]) -> Callable[[Any], Awaitable[None]]:
    """Return a message handler that records the changed URIs."""

    async def on_message(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            changed.append(message.params.uri)

    return on_message


async def subscribe(agent: Agent, uri: str) -> None:
    """Subscribe as clients of older protocol versions do."""
    with pytest.warns(MCPDeprecationWarning):
        await agent.client.subscribe_resource(uri)  # pyright: ignore[reportDeprecated]


async def has_updates(changed: list[str]) -> bool:
    """Whether any update arrived."""
    return bool(changed)
