"""Agents that wait are woken by what concerns them, miss nothing, and learn of nothing that they may not see."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from embedder_fixtures import wait_until
from stack import Agent, Refused, Server, Stack

from memory_core.keys import Keys
from memory_core.names import SEPARATOR

PATIENT = 20.0


class Waiting:
    """A call that waits for events."""

    def __init__(self, server: Server, namespace: str, agent: Agent, **arguments: Any) -> None:
        self._server, self._namespace, self._before = server, namespace, server_count(server, namespace)
        arguments.setdefault("timeout_seconds", PATIENT)
        self.task = asyncio.create_task(agent.call("wait_for_events", **arguments))

    async def begun(self) -> Waiting:
        """Wait until the server waits."""
        await wait_until(self._is_heard)
        return self

    async def _is_heard(self) -> bool:
        return self.task.done() or server_count(self._server, self._namespace) > self._before

    async def events(self) -> list[tuple[str, str, str]]:
        """Give the kind, op and id of what came."""
        return named(await self.task)


def server_count(server: Server, namespace: str) -> int:
    """How many calls wait in a namespace."""
    return server.service.events.count(namespace)


def named(answer: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Give the kind, op and id of each event."""
    return [(event["kind"], event["op"], event["id"]) for event in answer["events"]]


async def now(agent: Agent, **arguments: Any) -> dict[str, Any]:
    """Ask for what is there already."""
    return await agent.call("wait_for_events", timeout_seconds=0, **arguments)


async def emit(stack: Stack, namespace: str, kind: str, op: str, subject: str, **fields: Any) -> str:
    """Write an event as the Functions do, for kinds that have none here."""
    to = SEPARATOR.join(fields.pop("to", ()))
    entry = {"kind": kind, "op": op, "id": subject, "by": "", "scope": "", "to": to} | fields
    return (await stack.client.xadd(Keys(namespace).events, entry)).decode()


async def test_a_stored_memory_wakes_whoever_may_read_it(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    waiting = await Waiting(server, namespace, bob).begun()
    memory_id = await alice.store("The bridge is open.", visibility="public")
    answer = await waiting.task
    assert named(answer) == [("memory", "stored", memory_id)]
    assert answer["events"][0]["by"] == "alice"
    assert answer["events"][0]["uri"] == f"memory://{memory_id}"
    assert named(await now(bob, cursor=answer["cursor"])) == []
