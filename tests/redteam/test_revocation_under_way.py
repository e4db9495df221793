"""An attacker whose token ends goes on with calls that were admitted before: batches, waits, streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from support.auth_helpers import ACCEPT, issued, post, tool_call
from support.embedder_fixtures import wait_until
from support.stack import Agent, Server, Stack, in_own_task, serving

from memory_core.records.keys import token_key
from memory_server.access.tokens import revoke_token

pytestmark = pytest.mark.redteam
SECRET = "The launch code is four seven eleven."


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def token_server(stack: Stack) -> AsyncGenerator[Server]:
    """A server that requires tokens."""
    settings: dict[str, Any] = {"auth": {"mode": "tokens"}, "embed_wait_seconds": 15.0}
    async with in_own_task(serving(stack.redis.url, **settings)) as server:
        yield server


async def revoke(server: Server, token: str) -> None:
    await revoke_token(server.service.backend, token.split("_")[1])


async def is_waiting(server: Server, namespace: str) -> bool:
    return server.service.events.count(namespace) > 0


async def register(agent: Agent, name: str) -> None:
    await agent.call("register_agent", agent_id=name, agent_type="custom", capabilities=["build"])


async def test_waiting_claim_hands_nothing_to_a_revoked_token(token_server: Server, namespace: str) -> None:
    token, other = await issued(token_server, "alice", namespace), await issued(token_server, "bob", namespace)
    async with (
        token_server.agent("alice", namespace, token=token) as alice,
        token_server.agent("bob", namespace, token=other) as bob,
    ):
        await register(alice, "alice")
        await register(bob, "bob")
        await alice.store(SECRET)
        waiting = asyncio.create_task(alice.raw("get_pending_tasks", wait_seconds=20))
        await wait_until(lambda: is_waiting(token_server, namespace))
        await revoke(token_server, token)
        task = await bob.call(
            "distribute_task", description="Type the launch code", payload={"key": "hush"}, assign_to="alice"
        )
        answer = await waiting
        shown = await bob.call("get_task", task_id=task["task_id"])
    assert answer.is_error
    assert "unauthenticated" in str(answer)
    assert "hush" not in str(answer)
    assert SECRET not in str(answer)
    assert shown["task"]["state"] == "pending"


@pytest.mark.parametrize("later", ["store_memory", "get_agent_memories", "get_pending_tasks"])
async def test_batch_stops_when_its_token_is_revoked(token_server: Server, namespace: str, later: str) -> None:
    token, other = await issued(token_server, "alice", namespace), await issued(token_server, "alice", namespace)
    async with (
        token_server.agent("alice", namespace, token=token) as alice,
        token_server.agent("alice", namespace, token=other) as again,
    ):
        await register(again, "alice")
        await again.store(SECRET)
        arguments = {"content": "Written after the end."} if later == "store_memory" else {}
        operations = [{"op": "get_pending_tasks", "wait_seconds": 2}] + [{"op": later, **arguments}] * 5
        batch = asyncio.create_task(alice.raw("batch_operations", operations=operations))
        await wait_until(lambda: is_waiting(token_server, namespace))
        await revoke(token_server, token)
        answer = await batch
        listed = await again.call("get_agent_memories")
    assert "unauthenticated" in str(answer)
    assert SECRET not in str(answer)
    assert [memory["content"] for memory in listed["memories"]] == [SECRET]


async def test_batch_stops_when_its_token_expires(token_server: Server, namespace: str) -> None:
    other = await issued(token_server, "alice", namespace)
    async with token_server.agent("alice", namespace, token=other) as again:
        await register(again, "alice")
        token = await issued(token_server, "alice", namespace, seconds=1.5)
        operations = [{"op": "get_pending_tasks", "wait_seconds": 2}, {"op": "store_memory", "content": "Late."}]
        async with token_server.agent("alice", namespace, token=token) as alice:
            answer = await alice.raw("batch_operations", operations=operations)
        listed = await again.call("get_agent_memories")
    assert answer.is_error
    assert listed["memories"] == []


@pytest.mark.parametrize(
    "change", [{"scopes": "read"}, {"agent": "mallory"}, {"namespace": "elsewhere"}], ids=["scopes", "agent", "place"]
)
async def test_batch_stops_when_its_token_grants_less(
    token_server: Server, stack: Stack, namespace: str, change: dict[str, str]
) -> None:
    token, other = await issued(token_server, "alice", namespace), await issued(token_server, "alice", namespace)
    async with (
        token_server.agent("alice", namespace, token=token) as alice,
        token_server.agent("alice", namespace, token=other) as again,
    ):
        await register(again, "alice")
        operations = [{"op": "get_pending_tasks", "wait_seconds": 2}, {"op": "store_memory", "content": "Late."}]
        batch = asyncio.create_task(alice.raw("batch_operations", operations=operations))
        await wait_until(lambda: is_waiting(token_server, namespace))
        await stack.client.hset(token_key(token.split("_")[1]), mapping=change)
        await batch
        listed = await again.call("get_agent_memories")
    assert listed["memories"] == []


async def test_long_call_answers_nothing_to_a_revoked_token(
    token_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, began = await issued(token_server, "alice", namespace), asyncio.Event()
    embed, revoked = token_server.service.embeddings.embed, asyncio.Event()

    async def slow(*args: Any, **named: Any) -> Any:
        began.set()
        await revoked.wait()
        return await embed(*args, **named)

    async with token_server.agent("alice", namespace, token=token) as alice:
        memory_id = await alice.store(SECRET)
        monkeypatch.setattr(token_server.service.embeddings, "embed", slow)
        search = asyncio.create_task(alice.raw("semantic_search", query="launch code", mode="vector"))
        await began.wait()
        await revoke(token_server, token)
        await asyncio.sleep(0.3)
        revoked.set()
        answer = await search
    assert answer.is_error, memory_id
    assert SECRET not in str(answer)


async def test_batch_waits_are_bounded_in_all(stack: Stack, namespace: str) -> None:
    limits = {"batch_wait_seconds": 1.0}
    async with serving(stack.redis.url, limits=limits) as server, server.agent("alice", namespace) as alice:
        await register(alice, "alice")
        operations = [{"op": "get_pending_tasks", "wait_seconds": 30}] * 3
        began = time.monotonic()
        answer = await alice.call("batch_operations", operations=operations)
    assert time.monotonic() - began < 15
    for outcome in answer["results"]:
        assert outcome["ok"], outcome
        assert "batch" in outcome["result"]["reason"]


async def test_batch_without_time_left_waits_for_no_vectors(stack: Stack, namespace: str) -> None:
    limits = {"batch_wait_seconds": 0.0}
    async with serving(stack.redis.url, limits=limits) as server, server.agent("alice", namespace) as alice:
        known = await alice.store("Known already.")
        operations = [
            {"op": "store_memory", "content": "x" * 9000, "wait": True},
            {"op": "update_memory", "memory_id": known, "content": "Not known yet."},
        ]
        stored, updated = (await alice.call("batch_operations", operations=operations))["results"]
    assert stored["result"]["vector"] == updated["result"]["memory"]["vector"] == "pending"


async def test_open_stream_ends_with_its_token(
    token_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_server.http.open_responses.CHECK_SECONDS", 0.2)
    token = await issued(token_server, "alice", namespace)
    session = (await post(token_server, token)).headers["mcp-session-id"]
    headers = ACCEPT | {"Authorization": f"Bearer {token}", "Mcp-Session-Id": session}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as client,
        client.stream("GET", f"{token_server.url}/mcp") as response,
        asyncio.timeout(20),
    ):
        assert response.status_code == 200
        await revoke(token_server, token)
        async for _ in response.aiter_bytes():
            pass


async def test_waiting_call_ends_with_its_token(
    token_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_server.http.open_responses.CHECK_SECONDS", 0.2)
    token = await issued(token_server, "alice", namespace)
    session = {"Mcp-Session-Id": (await post(token_server, token)).headers["mcp-session-id"]}
    call = asyncio.create_task(post(token_server, token, tool_call("wait_for_events", timeout_seconds=60), **session))
    await wait_until(lambda: is_waiting(token_server, namespace))
    await revoke(token_server, token)
    assert '"result"' not in (await asyncio.wait_for(call, 20)).text

    async def has_ended() -> bool:
        return not await is_waiting(token_server, namespace)

    await wait_until(has_ended)
