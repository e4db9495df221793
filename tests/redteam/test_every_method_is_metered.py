"""An attacker floods the server with MCP methods other than tool calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from support.auth_helpers import ACCEPT, INITIALIZE, issued, post
from support.stack import Server, Stack, in_own_task, serving

pytestmark = pytest.mark.redteam
BURST = 6
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
UNKNOWN = {"ref": {"type": "ref/prompt", "name": "recall_before_you_start"}, "argument": {"name": "task", "value": "x"}}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ping": ("ping", {}),
    "tools/list": ("tools/list", {}),
    "a tool that is unknown": ("tools/call", {"name": "no_such_tool", "arguments": {}}),
    "resources/list": ("resources/list", {}),
    "resources/templates/list": ("resources/templates/list", {}),
    "resources/read": ("resources/read", {"uri": "agent://alice"}),
    "an unknown resource": ("resources/read", {"uri": "nothing://here/at/all"}),
    "resources/subscribe": ("resources/subscribe", {"uri": "agent://alice"}),
    "resources/unsubscribe": ("resources/unsubscribe", {"uri": "agent://alice"}),
    "prompts/list": ("prompts/list", {}),
    "prompts/get": ("prompts/get", {"name": "recall_before_you_start", "arguments": {"task": "x"}}),
    "completion/complete": ("completion/complete", UNKNOWN),
    "logging/setLevel": ("logging/setLevel", {"level": "debug"}),
    "an unknown method": ("no/such/method", {}),
}
MODERN = {"ping": ("server/discover", {}), **{name: METHODS[name] for name in METHODS if "scribe" not in name}}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def slow_server(stack: Stack) -> AsyncGenerator[Server]:
    """A server that allows each agent a few calls and then next to none."""
    limits = {"calls_per_second": 0.01, "burst": BURST}
    async with in_own_task(serving(stack.redis.url, limits=limits, auth={"mode": "tokens"})) as server:
        yield server


def message(method: str, params: dict[str, Any], number: int = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


async def flood(server: Server, token: str, body: dict[str, Any], **headers: str) -> int:
    """Send one request many times; return how many were refused for their rate."""
    answers = [await post(server, token, body, **headers) for _ in range(2 * BURST)]
    return sum("rate_limited" in answer.text for answer in answers)


@pytest.mark.parametrize("name", METHODS)
async def test_legacy_method_counts_against_the_rate_limit(slow_server: Server, namespace: str, name: str) -> None:
    token, other = await issued(slow_server, "alice", namespace), await issued(slow_server, "bob", namespace)
    session = {"Mcp-Session-Id": (await post(slow_server, token)).headers["mcp-session-id"]}
    method, params = METHODS[name]
    assert await flood(slow_server, token, message(method, params), **session) == BURST + 1
    assert "rate_limited" not in (await post(slow_server, other)).text


@pytest.mark.parametrize("name", MODERN)
async def test_sessionless_method_counts_against_the_rate_limit(slow_server: Server, namespace: str, name: str) -> None:
    token = await issued(slow_server, "alice", namespace)
    method, params = MODERN[name]
    headers = {"MCP-Protocol-Version": "2026-07-28", "MCP-Method": method}
    headers |= {"MCP-Name": target} if (target := params.get("name") or params.get("uri")) else {}
    assert await flood(slow_server, token, message(method, {**params, "_meta": META}), **headers) == BURST


async def test_initialize_counts_against_the_rate_limit(slow_server: Server, namespace: str) -> None:
    token = await issued(slow_server, "alice", namespace)
    assert await flood(slow_server, token, INITIALIZE) == BURST


async def test_notifications_count_against_the_rate_limit(slow_server: Server, namespace: str) -> None:
    token = await issued(slow_server, "alice", namespace)
    session = {"Mcp-Session-Id": (await post(slow_server, token)).headers["mcp-session-id"]}
    notification = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
    for _ in range(BURST):
        await post(slow_server, token, notification, **session)

    async def refused() -> bool:
        return "rate_limited" in (await post(slow_server, token, message("ping", {}), **session)).text

    assert await refused()


async def test_methods_wait_for_a_slot(stack: Stack, namespace: str) -> None:
    async with serving(stack.redis.url, limits={"calls_at_once": 1, "calls_waiting": 0}) as server:
        url = f"{server.url}/mcp?agent=alice&namespace={namespace}"
        async with httpx2.AsyncClient(headers=ACCEPT, timeout=30) as client:
            session = {"Mcp-Session-Id": (await client.post(url, json=INITIALIZE)).headers["mcp-session-id"]}
            names = ("tools/list", "prompts/get", "resources/read", "an unknown method")
            async with server.runtime.gate.admission.slot(patient=True):
                requests = [
                    asyncio.create_task(client.post(url, json=message(*METHODS[name]), headers=session))
                    for name in names
                ]
                done, _ = await asyncio.wait(requests, timeout=1.0)
                assert not done
            answers = dict(zip(names, await asyncio.gather(*requests), strict=True))
        assert '"tools"' in answers["tools/list"].text
        assert not [name for name, answer in answers.items() if "overloaded" in answer.text]
