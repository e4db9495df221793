"""Emits events and waits for them."""

from __future__ import annotations

import asyncio
from typing import Any

from memory_core.records.keys import Keys
from memory_core.records.names import SEPARATOR
from support.embedder_fixtures import wait_until
from support.stack import Agent, Server, Stack

PATIENT = 30.0


def listeners(server: Server, namespace: str) -> int:
    """Count the waiting calls of a namespace."""
    return server.service.events.count(namespace)


async def waiting(server: Server, namespace: str, agent: Agent, **arguments: Any) -> asyncio.Task[dict[str, Any]]:
    """Start a wait and return once the server has it."""
    before = listeners(server, namespace)
    arguments.setdefault("timeout_seconds", PATIENT)
    task = asyncio.create_task(agent.call("wait_for_events", **arguments))

    async def is_waiting() -> bool:
        return task.done() or listeners(server, namespace) > before

    await wait_until(is_waiting)
    return task


def named(answer: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the kind, op and id of each event."""
    return [(event["kind"], event["op"], event["id"]) for event in answer["events"]]


async def now(agent: Agent, **arguments: Any) -> dict[str, Any]:
    """Return the events that exist already."""
    return await agent.call("wait_for_events", timeout_seconds=0, **arguments)


async def emit(stack: Stack, namespace: str, subject: str, **fields: Any) -> str:
    """Write an event as the Functions do; by default a task event addressed to bob."""
    to = SEPARATOR.join(fields.pop("to", ("bob",)))
    entry = {"kind": "task", "op": "assigned", "id": subject, "by": "", "scope": "", "to": to} | fields
    return (await stack.client.xadd(Keys(namespace).events, entry)).decode()
