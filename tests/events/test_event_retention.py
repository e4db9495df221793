"""Which events are dropped, and who learns of it."""

from __future__ import annotations

import pytest
from support.event_helpers import emit, named, now
from support.stack import Agent, Stack

from memory_core.records.keys import Keys
from memory_server.events.entries import LOST, parse_entries
from memory_server.events.retention import trim_events
from memory_server.service import Service

PUBLIC = {"kind": "memory", "op": "stored", "to": (), "piece": "0", "vector": "0", "scope": "pub\x1fo:OWNER"}
PRIVATE = {**PUBLIC, "scope": "o:OWNER\x1fi:SOME"}


@pytest.fixture
async def cursor(bob: Agent) -> str:
    """Bob's position before any event."""
    return (await now(bob))["cursor"]


async def _flood(stack: Stack, namespace: str, by: str, number: int, **fields: object) -> None:
    for position in range(number):
        await emit(stack, namespace, f"{by}-{position}", by=by, **fields)


async def _subjects(stack: Stack, namespace: str) -> list[str]:
    entries = parse_entries(await stack.client.xrange(Keys(namespace).events))
    return [entry.subject for entry in entries if entry.kind != LOST]


async def test_busy_agent_drops_only_its_own_events(
    stack: Stack, service: Service, namespace: str, bob: Agent, cursor: str
) -> None:
    await _flood(stack, namespace, "carol", 3, to=("bob",))
    await _flood(stack, namespace, "mallory", 40, **PRIVATE)
    await _flood(stack, namespace, "dave", 3, to=("bob",))
    assert await trim_events(service.backend, namespace, 20, 20) == 26
    left = await _subjects(stack, namespace)
    assert [name for name in left if "mallory" in name] == [f"mallory-{number}" for number in range(26, 40)]
    answer = await now(bob, cursor=cursor)
    assert [name[2] for name in named(answer)] == ["carol-0", "carol-1", "carol-2", "dave-0", "dave-1", "dave-2"]
    assert not answer["partial"], "private stores of others are no gap"


async def test_nothing_is_dropped_below_the_threshold(stack: Stack, service: Service, namespace: str) -> None:
    await _flood(stack, namespace, "carol", 10, to=("bob",))
    assert await trim_events(service.backend, namespace, 5, 10) == 0
    assert await trim_events(service.backend, "never-used") == 0


async def test_dropped_public_event_is_a_gap_for_everybody(
    stack: Stack, service: Service, namespace: str, bob: Agent, cursor: str
) -> None:
    await _flood(stack, namespace, "mallory", 10, **PUBLIC)
    await trim_events(service.backend, namespace, 5, 5)
    assert (await now(bob, cursor=cursor))["partial"]


async def test_gap_is_known_to_those_with_a_grant(
    stack: Stack, service: Service, namespace: str, alice: Agent, bob: Agent, cursor: str
) -> None:
    await bob.call("register_agent")
    await alice.store("one", context="plans", wait=False)
    owner = (await stack.client.hget(Keys(namespace).agent("alice"), "owner")).decode()
    scope = {**PRIVATE, "scope": f"o:{owner}\x1fi:SOME"}
    await _flood(stack, namespace, "alice", 30, **scope)
    await trim_events(service.backend, namespace, 5, 5)
    assert not (await now(bob, cursor=cursor))["partial"]
    await alice.call("share_context_with_agent", target_agent="bob", context="plans")
    assert (await now(bob, cursor=cursor))["partial"]


async def test_later_loss_replaces_the_earlier_one(stack: Stack, service: Service, namespace: str) -> None:
    for _ in range(3):
        await _flood(stack, namespace, "mallory", 10, **PRIVATE)
        await trim_events(service.backend, namespace, 5, 5)
    entries = parse_entries(await stack.client.xrange(Keys(namespace).events))
    losses = [entry for entry in entries if entry.kind == LOST]
    assert [loss.scope for loss in losses] == [frozenset({"o:OWNER"})]
    kept = [entry.position for entry in entries if entry.kind != LOST]
    assert len(kept) == 5
    assert losses[0].lost_to < kept[0]
