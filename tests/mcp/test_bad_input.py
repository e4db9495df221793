"""Tools answer any input with a typed error or a correct result. Nothing else changes and the next call works."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from mcp_types import ElicitResult
from support.audit_helpers import ChangeCount
from support.bad_inputs import CASES, INJECTIONS, LEGAL, OTHERS, OWN, OWN_CONTENT, PROTOCOL, PUBLIC, Case
from support.stack import Agent, Server, Stack, in_own_task, text_of

from memory_core import errors
from memory_core.records.keys import Keys

NAMESPACE = "bad-input"
ECHO_LIMIT = 64
CODES = {kind.code for kind in errors.MemoryServiceError.__subclasses__()}


@dataclass(frozen=True)
class Ground:
    """Agents, a bare HTTP session and memories that must stay unchanged."""

    stack: Stack
    alice: Agent
    asked: Agent
    http: httpx2.AsyncClient
    ids: dict[str, str]
    changes: ChangeCount

    async def state(self) -> tuple[dict[str, Any], int]:
        """Return every memory's revision, expiry and tags, and the number of changes in the audit."""
        keys, client = Keys(NAMESPACE), self.stack.client
        found = {
            key.decode(): await client.hmget(key, ["rev", "expires_at", "hash", "scope"])
            async for key in client.scan_iter(match=keys.memory_prefix + "*", count=1000)
        }
        return found, await self.changes.read()

    async def restore(self, before: dict[str, Any]) -> None:
        """Remove what a case stored and undo its changes."""
        after, _ = await self.state()
        added = [key.rsplit(":", 1)[1] for key in after if key not in before]
        if added:
            await self.alice.call("clear_memory", memory_ids=added, confirm=True)
        if any(key not in after for key in before):
            self.ids[OWN] = await self.alice.store(OWN_CONTENT)
        elif any(after[key] != value for key, value in before.items()):
            await self.alice.call("update_memory", memory_id=self.ids[OWN], tags=[], context="", metadata={})

    async def post(self, tool: str, arguments: str) -> dict[str, Any]:
        """Post a call whose arguments are JSON text; return the JSON-RPC answer."""
        body = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}'
        response = await self.http.post("", content=body.encode())
        assert response.status_code < 500
        return _json_of(response.text)


def _json_of(body: str) -> dict[str, Any]:
    data = [line.removeprefix("data:") for line in body.splitlines() if line.startswith("data:")]
    return json.loads(data[-1] if data else body)


async def _agree(_: Any, __: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"delete": True})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ground(stack: Stack) -> AsyncGenerator[Ground]:
    """One namespace for all cases: creating one per case would take longer than the cases."""
    server: Server = stack.server
    async with AsyncExitStack() as opened:
        alice = await opened.enter_async_context(in_own_task(server.agent("alice", NAMESPACE)))
        bob = await opened.enter_async_context(in_own_task(server.agent("bob", NAMESPACE)))
        other = await opened.enter_async_context(in_own_task(server.agent("nobody", NAMESPACE)))
        asked = server.agent("alice", NAMESPACE, elicitation_callback=_agree)
        ids = {
            OWN: await alice.store(OWN_CONTENT),
            OTHERS: await bob.store("A hidden cove lies behind the harbour.", tags=list(INJECTIONS.values())[:17]),
            PUBLIC: await bob.store("Ships are in the harbour.", visibility="public"),
        }
        await other.store("Nobody speaks for all.", visibility="public")
        http = await opened.enter_async_context(
            httpx2.AsyncClient(
                base_url=f"{server.url}/mcp?agent=alice&namespace={NAMESPACE}",
                headers={"Accept": "application/json, text/event-stream", "Content-Type": "application/json"},
            )
        )
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
        greeted = await http.post("", json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello})
        http.headers["Mcp-Session-Id"] = greeted.headers["Mcp-Session-Id"]
        await http.post("", json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        asking = await opened.enter_async_context(in_own_task(asked))
        yield Ground(stack, alice, asking, http, ids, ChangeCount(stack.client, Keys(NAMESPACE)))


def _with_ids(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _with_ids(item, ids) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_ids(item, ids) for item in value]
    return ids.get(value, value) if isinstance(value, str) else value


def _texts(value: Any) -> Iterable[str]:
    """All texts and numbers a caller wrote, including argument names."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from (name, *_texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str | int):
        yield str(value) if isinstance(value, str) else f"{value:d}"


async def _call(ground: Ground, case: Case) -> tuple[bool, str, dict[str, Any]]:
    """Make the call; return whether it was refused, the text and the structured answer."""
    if isinstance(case.arguments, str):
        answer = await ground.post(case.tool, case.arguments)
        if "error" in answer:
            return True, str(answer["error"]["message"]), {"error": {"code": PROTOCOL}}
        result = answer["result"]
        return result["isError"], result["content"][0]["text"], result.get("structuredContent", {})
    agent = ground.asked if case.asked else ground.alice
    result = await agent.raw(case.tool, **_with_ids(case.arguments, ground.ids))
    return bool(result.is_error), text_of(result), result.structured_content or {}


def _check_refusal(case: Case, text: str, answer: dict[str, Any]) -> None:
    code = answer.get("error", {}).get("code")
    assert code == case.outcome, text[:300]
    assert code in CODES | {PROTOCOL}
    for given in _texts(case.arguments):
        beginning = given[: ECHO_LIMIT + 1]
        assert len(given) <= ECHO_LIMIT or (beginning not in text and ascii(beginning)[1:-1] not in text)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.tool}: {case.name}" for case in CASES])
async def test_bad_input_is_refused_by_type_and_odd_input_is_answered(
    case: Case, ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    before = await ground.state()
    try:
        refused, text, answer = await _call(ground, case)
        if case.outcome == LEGAL:
            assert not refused, text[:300]
            assert case.check(answer)
        else:
            assert refused, text[:300]
            _check_refusal(case, text, answer)
            assert await ground.state() == before
        assert "unexpected error" not in text
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    finally:
        await ground.restore(before[0])
    listed = await ground.alice.call("get_agent_memories")
    assert [memory["content"] for memory in listed["memories"]] == [OWN_CONTENT]
