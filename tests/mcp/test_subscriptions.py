"""Clients that subscribe to a readable resource are notified of its changes, in both protocol eras."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from mcp.client.subscriptions import ResourceUpdated
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from support.embedder_fixtures import wait_until
from support.event_helpers import emit, listeners
from support.stack import Agent, Server, Stack, serving
from support.subscription_helpers import subscribe, updated

ERAS = ["legacy", "2026-07-28"]
UNKNOWN = "memory://01arz3ndektsv4rrffq69g5fav"


@dataclass(slots=True)
class Subscriber:
    """A subscribed client and the changes it was notified of."""

    agent: Agent
    changed: list[str] = field(default_factory=list[str])

    async def receives(self, *uris: str) -> None:
        """Wait for a notification of the last URI; check that exactly these URIs were notified."""

        async def received() -> bool:
            return uris[-1] in self.changed

        await wait_until(received)
        assert sorted(set(self.changed)) == sorted(uris)


@asynccontextmanager
async def subscribed(server: Server, namespace: str, name: str, era: Any, *uris: str) -> AsyncGenerator[Subscriber]:
    """Connect a client and subscribe it."""
    changed: list[str] = []
    async with server.agent(name, namespace, mode=era, message_handler=updated(changed)) as agent:
        subscriber = Subscriber(agent, changed)
        if era == "legacy":
            for uri in uris:
                await subscribe(agent, uri)
            yield subscriber
            return
        async with agent.client.listen(resource_subscriptions=uris) as stream:

            async def collect() -> None:
                async for event in stream:
                    assert isinstance(event, ResourceUpdated)
                    changed.append(event.uri)

            collecting = asyncio.create_task(collect())
            try:
                yield subscriber
            finally:
                collecting.cancel()
                await asyncio.gather(collecting, return_exceptions=True)


@pytest.mark.parametrize("era", ["legacy", "auto"])
async def test_subscribing_is_advertised(server: Server, namespace: str, era: Any) -> None:
    async with server.agent("bob", namespace, mode=era) as agent:
        resources = agent.client.server_capabilities.resources
        assert resources
        assert resources.subscribe


@pytest.mark.parametrize("era", ERAS)
async def test_changed_memory_is_notified(server: Server, namespace: str, alice: Agent, era: Any) -> None:
    memory_id = await alice.store("The bridge is open.", visibility="public")
    other = await alice.store("The gate is shut.", visibility="public")
    async with subscribed(server, namespace, "bob", era, f"memory://{memory_id}") as bob:
        await alice.call("update_memory", memory_id=other, tags=["gate"])
        await alice.call("update_memory", memory_id=memory_id, tags=["bridge"])
        await bob.receives(f"memory://{memory_id}")


@pytest.mark.parametrize("era", ERAS)
async def test_deleted_memory_is_notified(server: Server, namespace: str, alice: Agent, era: Any) -> None:
    memory_id = await alice.store("The bridge is open.", visibility="public")
    async with subscribed(server, namespace, "bob", era, f"memory://{memory_id}") as bob:
        await alice.call("clear_memory", memory_ids=[memory_id])
        await bob.receives(f"memory://{memory_id}")


@pytest.mark.parametrize("era", ERAS)
async def test_task_and_agent_changes_are_notified_to_their_parties(
    server: Server, stack: Stack, namespace: str, era: Any
) -> None:
    uris = "task://t1", "task://t2", "agent://carol"
    async with subscribed(server, namespace, "bob", era, *uris) as bob:
        await emit(stack, namespace, "t2", to=("carol",))
        await emit(stack, namespace, "t1", to=("carol", "bob"))
        await emit(stack, namespace, "carol", kind="agent", op="dead", to=())
        await bob.receives("task://t1", "agent://carol")


@pytest.mark.parametrize("era", ERAS)
async def test_forbidden_and_unknown_subscriptions_look_alike_and_stay_silent(
    server: Server, namespace: str, alice: Agent, era: Any
) -> None:
    secret = await alice.store("The treasure is under the lighthouse.")
    shown = await alice.store("The lighthouse is white.", visibility="public")
    uris = f"memory://{secret}", UNKNOWN, "memory://", "nonsense", f"memory://{shown}"
    async with (
        subscribed(server, namespace, "bob", era, *uris) as bob,
        subscribed(server, namespace, "alice", era, *uris) as owner,
        subscribed(server, f"{namespace}-elsewhere", "alice", era, *uris) as namesake,
    ):
        await alice.call("update_memory", memory_id=secret, tags=["gold"])
        await alice.call("update_memory", memory_id=shown, tags=["white"])
        await bob.receives(f"memory://{shown}")
        await owner.receives(f"memory://{secret}", f"memory://{shown}")
        assert namesake.changed == []


@pytest.mark.parametrize("era", ERAS)
async def test_memory_made_private_is_no_longer_notified(
    server: Server, namespace: str, alice: Agent, era: Any
) -> None:
    memory_id = await alice.store("The treasure is here.", visibility="public")
    shown = await alice.store("The lighthouse is white.", visibility="public")
    async with subscribed(server, namespace, "bob", era, f"memory://{memory_id}", f"memory://{shown}") as bob:
        await alice.call("update_memory", memory_id=memory_id, visibility="private")
        await alice.call("update_memory", memory_id=memory_id, tags=["gold"])
        await alice.call("clear_memory", memory_ids=[memory_id])
        await alice.call("update_memory", memory_id=shown, tags=["white"])
        await bob.receives(f"memory://{shown}")


@pytest.mark.parametrize("era", ERAS)
async def test_subscriptions_end_when_the_client_leaves(server: Server, namespace: str, era: Any) -> None:
    async with subscribed(server, namespace, "bob", era, "task://t1", "task://t2"):
        assert listeners(server, namespace)

    async def is_gone() -> bool:
        return listeners(server, namespace) == 0

    await wait_until(is_gone)


async def test_unsubscribing_stops_notifications(server: Server, stack: Stack, namespace: str) -> None:
    async with subscribed(server, namespace, "bob", "legacy", "task://t1", "task://t2") as bob:
        with pytest.warns(MCPDeprecationWarning):
            await bob.agent.client.unsubscribe_resource("task://t1")  # pyright: ignore[reportDeprecated]
        await emit(stack, namespace, "t1")
        await emit(stack, namespace, "t2")
        await bob.receives("task://t2")


async def test_stream_ends_gracefully_when_the_server_stops(stack: Stack, namespace: str) -> None:
    async with (
        serving(stack.redis.url) as server,
        server.agent("bob", namespace, mode="2026-07-28") as agent,
        agent.client.listen(resource_subscriptions=["task://t1"]) as stream,
    ):
        server.runtime.stop_waiting()
        assert [event async for event in stream] == []


@pytest.mark.parametrize("era", ERAS)
async def test_subscribing_to_too_many_resources_is_refused(server: Server, namespace: str, era: Any) -> None:
    uris = [f"task://{number}" for number in range(257)]
    with pytest.raises((MCPError, ExceptionGroup)) as refused:
        async with subscribed(server, namespace, "bob", era, *uris):
            pass
    assert "at most 256" in repr(refused.value)
