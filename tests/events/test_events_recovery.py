"""Waits and cursors survive restarts of the server and of Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress

import numpy as np
import pytest
import pytest_asyncio
from redis.exceptions import RedisError
from support.embedder_fixtures import wait_until
from support.event_helpers import emit, listeners, named, now, waiting
from support.stack import Agent, Refused, Stack, in_own_task, serving, whole_stack
from support.subscription_helpers import has_updates, subscribe, updated

from memory_core.records.model import Model
from memory_core.records.vectors import Matrix
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.events.entries import START
from memory_server.events.listeners import Audience, Waiter

NAMESPACE = "frail-events"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stack]:
    """A separate stack that these tests break."""
    async with whole_stack(tmp_path_factory.mktemp("frail"), embed_wait_seconds=15.0) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def bob(own_stack: Stack) -> AsyncGenerator[Agent]:
    """An agent of that stack."""
    async with in_own_task(own_stack.server.agent("bob", NAMESPACE)) as connected:
        yield connected


async def take(agent: Agent, cursor: str, wanted: int) -> list[str]:
    """Wait until so many events arrived; call again after every answer or error."""
    got: list[str] = []
    deadline = time.monotonic() + 30
    while len(got) < wanted and time.monotonic() < deadline:
        try:
            answer = await agent.call("wait_for_events", cursor=cursor, timeout_seconds=1)
        except Refused as refused:
            if refused.code != "store_unavailable":
                raise
            continue
        cursor = answer["cursor"]
        got += [event["id"] for event in answer["events"]]
    return got


async def break_redis(stack: Stack) -> None:
    """Kill Redis as a power cut would, restart it, and reconnect the tests' client."""
    stack.redis.kill()
    stack.redis.start()

    async def answers() -> bool:
        with suppress(RedisError):
            return bool(await stack.client.ping())
        return False

    await wait_until(answers)


async def test_cursor_works_after_a_server_restart(own_stack: Stack) -> None:
    async with serving(own_stack.redis.url) as first, first.agent("bob", NAMESPACE) as agent:
        cursor = (await now(agent))["cursor"]
        await emit(own_stack, NAMESPACE, "before")
        answer = await now(agent, cursor=cursor)
        assert [name[2] for name in named(answer)] == ["before"]
    await emit(own_stack, NAMESPACE, "between")
    async with serving(own_stack.redis.url) as second, second.agent("bob", NAMESPACE) as agent:
        await emit(own_stack, NAMESPACE, "after")
        assert await take(agent, answer["cursor"], 2) == ["between", "after"]


async def test_waiting_call_survives_a_redis_restart(own_stack: Stack, bob: Agent) -> None:
    wait = await waiting(own_stack.server, NAMESPACE, bob)
    await break_redis(own_stack)
    await emit(own_stack, NAMESPACE, "after the storm")
    assert [name[2] for name in named(await wait)] == ["after the storm"]


async def test_repeated_redis_kills_lose_and_duplicate_no_event(own_stack: Stack, bob: Agent) -> None:
    cursor = (await now(bob))["cursor"]
    sent = [f"task-{number}" for number in range(60)]

    async def send() -> None:
        for number, subject in enumerate(sent):
            if number % 20 == 10:
                await break_redis(own_stack)
            await emit(own_stack, NAMESPACE, subject)

    sending = asyncio.create_task(send())
    assert await take(bob, cursor, len(sent)) == sent
    await sending


async def test_stopping_server_answers_waiting_calls(own_stack: Stack) -> None:
    async with AsyncExitStack() as parts:
        async with serving(own_stack.redis.url) as server:
            agent = await parts.enter_async_context(server.agent("bob", NAMESPACE))
            await agent.client.list_tools()  # otherwise the client asks the stopped server for the answer's schema
            wait = await waiting(server, NAMESPACE, agent, timeout_seconds=300)
        answer = await wait
    assert answer["events"] == []
    assert answer["partial"]
    assert "stopping" in answer["reason"]
    assert answer["cursor"]
    assert listeners(server, NAMESPACE) == 0


async def test_subscription_survives_a_redis_restart(own_stack: Stack) -> None:
    changed: list[str] = []
    async with own_stack.server.agent("bob", NAMESPACE, mode="legacy", message_handler=updated(changed)) as agent:
        await subscribe(agent, "agent://carol")
        await break_redis(own_stack)
        await emit(own_stack, NAMESPACE, "carol", kind="agent", op="registered", to=())
        await wait_until(lambda: has_updates(changed))
    assert set(changed) == {"agent://carol"}


def test_query_that_left_during_its_vector_lookup_matches_nothing() -> None:
    vector: Matrix = np.eye(1, 384, dtype=np.float32)[0]
    model = Model(DEFAULT_MODEL, 384)
    audience, waiter = Audience(START), Waiter("alice", frozenset({"match"}), vector, 0.5, model)
    audience.add(waiter)
    assert audience.near(vector, model) == {waiter}
    audience.remove(waiter)
    assert audience.near(vector, model) == set()
