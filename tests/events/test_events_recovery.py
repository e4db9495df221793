"""A wait outlives what breaks around it: a cursor goes on where it was, whatever was restarted in between."""

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
from support.subscription_helpers import is_told, subscribe, updated

from memory_core.records.model import Model
from memory_core.records.vectors import Matrix
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.events.entries import START
from memory_server.events.listeners import Audience, Waiter

NAMESPACE = "frail-events"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def frail(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stack]:
    """A stack of this module's own, to be broken."""
    async with whole_stack(tmp_path_factory.mktemp("frail"), embed_wait_seconds=15.0) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def bob(frail: Stack) -> AsyncGenerator[Agent]:
    """An agent of the frail stack."""
    async with in_own_task(frail.server.agent("bob", NAMESPACE)) as connected:
        yield connected


async def take(agent: Agent, cursor: str, wanted: int) -> list[str]:
    """Wait until so many events came, calling again whatever the server answers."""
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
    """Take Redis away as a power cut would, bring it back, and have the tests' own client notice."""
    stack.redis.kill()
    stack.redis.start()

    async def answers() -> bool:
        with suppress(RedisError):
            return bool(await stack.client.ping())
        return False

    await wait_until(answers)


async def test_a_cursor_goes_on_after_the_server_was_restarted(frail: Stack) -> None:
    async with serving(frail.redis.url) as first, first.agent("bob", NAMESPACE) as agent:
        cursor = (await now(agent))["cursor"]
        await emit(frail, NAMESPACE, "before")
        answer = await now(agent, cursor=cursor)
        assert [name[2] for name in named(answer)] == ["before"]
    await emit(frail, NAMESPACE, "between")
    async with serving(frail.redis.url) as second, second.agent("bob", NAMESPACE) as agent:
        await emit(frail, NAMESPACE, "after")
        assert await take(agent, answer["cursor"], 2) == ["between", "after"]


async def test_a_call_that_waits_while_redis_is_killed_and_restarted_gets_what_comes_after(
    frail: Stack, bob: Agent
) -> None:
    wait = await waiting(frail.server, NAMESPACE, bob)
    await break_redis(frail)
    await emit(frail, NAMESPACE, "after the storm")
    assert [name[2] for name in named(await wait)] == ["after the storm"]


async def test_nothing_is_missed_or_doubled_while_redis_is_killed_again_and_again(frail: Stack, bob: Agent) -> None:
    cursor = (await now(bob))["cursor"]
    sent = [f"task-{number}" for number in range(60)]

    async def send() -> None:
        for number, subject in enumerate(sent):
            if number % 20 == 10:
                await break_redis(frail)
            await emit(frail, NAMESPACE, subject)

    sending = asyncio.create_task(send())
    assert await take(bob, cursor, len(sent)) == sent
    await sending


async def test_a_server_that_stops_answers_the_calls_that_wait(frail: Stack) -> None:
    async with AsyncExitStack() as parts:
        async with serving(frail.redis.url) as server:
            agent = await parts.enter_async_context(server.agent("bob", NAMESPACE))
            await agent.client.list_tools()  # or the client would ask for the schema of the answer, of nobody
            wait = await waiting(server, NAMESPACE, agent, timeout_seconds=300)
        answer = await wait
    assert answer["events"] == []
    assert answer["partial"]
    assert "stopping" in answer["reason"]
    assert answer["cursor"]
    assert listeners(server, NAMESPACE) == 0


async def test_a_subscription_outlives_a_restart_of_redis(frail: Stack) -> None:
    changed: list[str] = []
    async with frail.server.agent("bob", NAMESPACE, mode="legacy", message_handler=updated(changed)) as agent:
        await subscribe(agent, "agent://carol")
        await break_redis(frail)
        await emit(frail, NAMESPACE, "carol", kind="agent", op="registered", to=())
        await wait_until(lambda: is_told(changed))
    assert set(changed) == {"agent://carol"}


def test_whose_query_has_left_while_its_vector_was_looked_up_is_near_to_nothing() -> None:
    vector: Matrix = np.eye(1, 384, dtype=np.float32)[0]
    model = Model(DEFAULT_MODEL, 384)
    audience, waiter = Audience(START), Waiter("alice", frozenset({"match"}), vector, 0.5, model)
    audience.add(waiter)
    assert audience.near(vector, model) == {waiter}
    audience.remove(waiter)
    assert audience.near(vector, model) == set()
