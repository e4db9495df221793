"""Subscribes to resources and waits for updates."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mcp.shared.exceptions import MCPDeprecationWarning
from mcp_types import ResourceUpdatedNotification

from support.stack import Agent


def updated(changed: list[str]) -> Callable[[Any], Awaitable[None]]:
    """Make a handler of messages that notes what changed."""

    async def hear(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            changed.append(message.params.uri)

    return hear


async def subscribe(agent: Agent, uri: str) -> None:
    """Subscribe as clients of the older protocols do."""
    with pytest.warns(MCPDeprecationWarning):
        await agent.client.subscribe_resource(uri)  # pyright: ignore[reportDeprecated]


async def is_told(changed: list[str]) -> bool:
    """Whether anything was told."""
    return bool(changed)
