"""Sessions of the eras up to 2025-11-25 are served by every server of one Redis, and bound to their agent."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from support.auth_helpers import ACCEPT, INITIALIZE, issued, tool_call
from support.embedder_fixtures import wait_until
from support.event_helpers import emit
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Server, Stack, serving

from memory_core.records.keys import Keys, digest, ended_sessions, followed_resources

LEGACY = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
LIST = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def second(stack: Stack) -> AsyncGenerator[Server]:
    """Another server on the same Redis."""
    async with serving(stack.redis.url_of(SERVER), master_key=MASTER_KEY) as server:
        yield server


@pytest_asyncio.fixture
async def http() -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=20) as client:
        yield client


def mcp(server: Server, namespace: str, agent: str = "alice") -> str:
    return f"{server.url}/mcp?agent={agent}&namespace={namespace}"


def opening(version: str = "2025-06-18", **capabilities: Any) -> dict[str, Any]:
    params = INITIALIZE["params"] | {"protocolVersion": version, "capabilities": capabilities}
    return INITIALIZE | {"params": params}


async def opened(http: httpx2.AsyncClient, url: str, body: dict[str, Any] | None = None) -> dict[str, str]:
    """Open a session; return the header that names it."""
    answer = await http.post(url, json=body or opening())
    assert answer.status_code == 200
    return {"mcp-session-id": answer.headers["mcp-session-id"]}


def answer_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the message of an event stream that answers one request."""
    (line,) = [line for line in response.text.splitlines() if line.startswith("data: {")]
    return json.loads(line.removeprefix("data: "))


@asynccontextmanager
async def listening(http: httpx2.AsyncClient, url: str, headers: dict[str, str]) -> AsyncGenerator[list[str]]:
    """Open the listening stream of a session; yields the URIs of the changes it brings."""
    changed: list[str] = []
    async with http.stream("GET", url, headers=headers) as stream:
        assert stream.status_code == 200

        async def collect() -> None:
            async for line in stream.aiter_lines():
                if line.startswith("data: {"):
                    changed.append(json.loads(line.removeprefix("data: "))["params"]["uri"])

        collecting = asyncio.create_task(collect())
        try:
            yield changed
        finally:
            collecting.cancel()


@pytest.mark.parametrize("version", LEGACY)
async def test_another_server_continues_a_session(
    stack: Stack, second: Server, http: httpx2.AsyncClient, namespace: str, version: str
) -> None:
    session = await opened(http, mcp(stack.server, namespace), opening(version))
    headers = session | {"mcp-protocol-version": version}
    for server in (second, stack.server, second):
        answer = await http.post(mcp(server, namespace), json=LIST, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["mcp-session-id"] == session["mcp-session-id"]
        assert answer_of(answer)["result"]["tools"]


async def test_rebuilt_session_keeps_client_name_and_capabilities(
    stack: Stack, second: Server, http: httpx2.AsyncClient, namespace: str
) -> None:
    unnamed = f"/mcp?namespace={namespace}"
    session = await opened(http, stack.server.url + unnamed, opening(elicitation={}))
    stored = [tool_call("store_memory", content=f"Fact {number}.", tags=["all"]) for number in range(2)]
    for call in stored:
        await http.post(second.url + unnamed, json=call, headers=session)
    asked = tool_call("clear_memory", tags=["all"])
    async with http.stream("POST", second.url + unnamed, json=asked, headers=session) as stream:
        lines = (line.removeprefix("data: ") async for line in stream.aiter_lines() if line.startswith("data: {"))
        question = json.loads(await anext(lines))
        assert question["method"] == "elicitation/create"
        reply = {"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept", "content": {"delete": True}}}
        assert (await http.post(second.url + unnamed, json=reply, headers=session)).status_code == 202
        result = json.loads(await anext(lines))["result"]
    assert result["structuredContent"]["deleted"] == 2
    event = await stack.client.xrevrange(Keys(namespace).audit, count=1)
    assert event[0][1][b"who"] == b"bare", "with authentication off the client's name counts"


@pytest.mark.parametrize("stale", ["gone", "a" * 32, "x.y:z", "é", "1" * 5000])
async def test_initialize_is_accepted_whatever_session_it_names(
    stack: Stack, http: httpx2.AsyncClient, namespace: str, stale: str
) -> None:
    url, headers = mcp(stack.server, namespace), {"mcp-session-id": stale.encode()}
    answer = await http.post(url, json=opening(), headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 200
    session = {"mcp-session-id": answer.headers["mcp-session-id"]}
    assert session["mcp-session-id"] != stale
    assert (await http.post(url, json=LIST, headers=session)).status_code == 200
    again = await http.post(url, json=opening(), headers=session)
    assert again.headers["mcp-session-id"] != session["mcp-session-id"], "it is a new session"


async def test_forged_or_altered_session_is_not_found(
    stack: Stack, second: Server, http: httpx2.AsyncClient, namespace: str
) -> None:
    session = (await opened(http, mcp(stack.server, namespace)))["mcp-session-id"]
    payload, _, code = session.partition(".")
    fields = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    later = base64.urlsafe_b64encode(json.dumps([fields[0], fields[1] + 1000, *fields[2:]]).encode()).decode()
    forged = [f"{later.rstrip('=')}.{code}", payload, f"{payload}.", f"{payload}.{code[:-1]}", f".{code}", "."]
    for wrong in forged:
        for server in (stack.server, second):
            answer = await http.post(mcp(server, namespace), json=LIST, headers={"mcp-session-id": wrong})
            assert answer.status_code == 404, wrong
    assert (await http.post(mcp(second, namespace), json=LIST, headers={"mcp-session-id": session})).status_code == 200


async def test_session_of_another_agent_or_namespace_is_not_found(
    stack: Stack, second: Server, http: httpx2.AsyncClient, namespace: str
) -> None:
    session = await opened(http, mcp(stack.server, namespace))
    for server in (stack.server, second):
        for foreign in (mcp(server, namespace, "bob"), mcp(server, f"{namespace}-other"), f"{server.url}/mcp"):
            for method in ("POST", "GET", "DELETE"):
                body = LIST if method == "POST" else None
                assert (await http.request(method, foreign, json=body, headers=session)).status_code == 404
        assert (await http.post(mcp(server, namespace), json=LIST, headers=session)).status_code == 200


async def test_expired_session_is_not_found(
    stack: Stack, second: Server, http: httpx2.AsyncClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await opened(http, mcp(stack.server, namespace))
    now = time.time()
    monkeypatch.setattr("memory_server.access.sessions.time.time", lambda: now + 31 * 86_400)
    for server in (stack.server, second):
        assert (await http.post(mcp(server, namespace), json=LIST, headers=session)).status_code == 404


async def test_ended_session_is_not_found_on_any_server(
    stack: Stack, second: Server, http: httpx2.AsyncClient, namespace: str
) -> None:
    session = await opened(http, mcp(stack.server, namespace))
    kept = await opened(http, mcp(stack.server, namespace))
    assert (await http.post(mcp(second, namespace), json=LIST, headers=session)).status_code == 200
    assert (await http.delete(mcp(second, namespace), headers=session)).status_code == 200
    for server in (stack.server, second):
        assert (await http.post(mcp(server, namespace), json=LIST, headers=session)).status_code == 404
        assert (await http.delete(mcp(server, namespace), headers=session)).status_code == 404
        assert (await http.post(mcp(server, namespace), json=LIST, headers=kept)).status_code == 200


async def test_session_outlives_keys_of_another_type(stack: Stack, http: httpx2.AsyncClient, namespace: str) -> None:
    url, holder = mcp(stack.server, namespace), digest(json.dumps([namespace, "alice"]))
    session = await opened(http, url)
    for key in (ended_sessions(holder), followed_resources(holder)):
        await stack.client.set(key, "damaged")
    assert (await http.post(url, json=LIST, headers=session)).status_code == 200
    stored = await http.post(url, json=tool_call("store_memory", content="Followed."), headers=session)
    uri = f"memory://{answer_of(stored)['result']['structuredContent']['memory_id']}"
    message = {"jsonrpc": "2.0", "id": 3, "method": "resources/subscribe", "params": {"uri": uri}}
    assert "result" in answer_of(await http.post(url, json=message, headers=session))
    assert await stack.client.type(followed_resources(holder)) == b"zset"
    await stack.client.set(ended_sessions(holder), "damaged")
    assert (await http.delete(url, headers=session)).status_code == 200
    assert (await http.post(url, json=LIST, headers=session)).status_code == 404


async def test_subscriptions_continue_on_another_server(
    stack: Stack, second: Server, http: httpx2.AsyncClient, namespace: str
) -> None:
    session = await opened(http, mcp(stack.server, namespace))
    stored = await http.post(
        mcp(stack.server, namespace), json=tool_call("store_memory", content="Followed."), headers=session
    )
    memory_id = answer_of(stored)["result"]["structuredContent"]["memory_id"]
    uri = f"memory://{memory_id}"
    message = {"jsonrpc": "2.0", "id": 3, "method": "resources/subscribe", "params": {"uri": uri}}
    assert (await http.post(mcp(stack.server, namespace), json=message, headers=session)).status_code == 200
    resumed = session | {"last-event-id": "7"}
    async with listening(http, mcp(second, namespace), resumed) as changed:

        async def is_notified() -> bool:
            change = tool_call("update_memory", memory_id=memory_id, content=f"Changed {time.time()}.")
            await http.post(mcp(stack.server, namespace), json=change, headers=session)
            await asyncio.sleep(0.2)
            return bool(changed)

        await wait_until(is_notified)
        assert set(changed) == {uri}


async def test_subscription_at_another_server_reaches_an_open_stream(
    stack: Stack, second: Server, http: httpx2.AsyncClient, namespace: str
) -> None:
    session, uri = await opened(http, mcp(stack.server, namespace)), "agent://alice"
    here, there = mcp(stack.server, namespace), mcp(second, namespace)
    await http.post(here, json=tool_call("register_agent", agent_type="custom"), headers=session)
    async with listening(http, there, session) as changed:
        message = {"jsonrpc": "2.0", "id": 3, "method": "resources/subscribe", "params": {"uri": uri}}
        await http.post(here, json=message, headers=session)

        async def is_notified() -> bool:
            await emit(stack, namespace, "alice", kind="agent", op="status", to=("alice",))
            await asyncio.sleep(0.2)
            return bool(changed)

        await wait_until(is_notified)


async def test_rebuilt_sessions_count_against_their_agent(
    stack: Stack, http: httpx2.AsyncClient, namespace: str
) -> None:
    url = stack.redis.url_of(SERVER)
    async with AsyncExitStack() as parts:
        small = await parts.enter_async_context(serving(url, limits={"sessions": 6}, master_key=MASTER_KEY))
        sessions = [await opened(http, mcp(stack.server, namespace)) for _ in range(6)]
        answers = [await http.post(mcp(small, namespace), json=LIST, headers=one) for one in sessions]
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) == 3
        assert statuses.count(503) == 3, "not 404: the session is still valid"
        victim = await http.post(mcp(small, namespace, "victim"), json=opening())
        assert victim.status_code == 200


async def test_token_holder_cannot_use_a_session_of_another_agent_elsewhere(
    stack: Stack, http: httpx2.AsyncClient, namespace: str
) -> None:
    url = stack.redis.url_of(SERVER)
    async with AsyncExitStack() as parts:
        servers = [
            await parts.enter_async_context(serving(url, auth={"mode": "tokens"}, master_key=MASTER_KEY))
            for _ in range(2)
        ]
        alice, rotated = [await issued(servers[0], "alice", namespace) for _ in range(2)]
        bob = await issued(servers[0], "bob", namespace)

        async def status(server: Server, token: str | None, session: dict[str, str]) -> int:
            credentials = {"Authorization": f"Bearer {token}"} if token else {}
            return (await http.post(f"{server.url}/mcp", json=LIST, headers=session | credentials)).status_code

        answer = await http.post(f"{servers[0].url}/mcp", json=opening(), headers={"Authorization": f"Bearer {alice}"})
        session = {"mcp-session-id": answer.headers["mcp-session-id"]}
        for server in servers:
            assert await status(server, bob, session) == 404
            assert await status(server, None, session) == 401
            assert await status(server, alice, session) == 200
            assert await status(server, rotated, session) == 200, "a new token of the same agent"


async def test_session_survives_a_restart_without_a_signing_key(
    stack: Stack, http: httpx2.AsyncClient, namespace: str
) -> None:
    url = stack.redis.url_of(SERVER)
    async with serving(url, namespace=namespace) as server:
        session = await opened(http, mcp(server, namespace))
    async with serving(url, namespace=namespace) as server:
        assert (await http.post(mcp(server, namespace), json=LIST, headers=session)).status_code == 200
