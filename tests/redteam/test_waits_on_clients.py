"""An attacker leaves the server's questions unanswered, or uses the answer to one for something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ElicitResult, InputRequiredResult
from support.auth_helpers import ACCEPT, INITIALIZE, issued, post, tool_call
from support.embedder_fixtures import wait_until
from support.stack import Agent, Refused, Server, Stack, serving

from memory_server.access.tokens import revoke_token

pytestmark = pytest.mark.redteam
YES = ElicitResult(action="accept", content={"delete": True})
NO = ElicitResult(action="decline")
ASKING = {
    **INITIALIZE,
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {"elicitation": {}},
        "clientInfo": {"name": "bare", "version": "1"},
    },
}
CLEAR = tool_call("clear_memory", tags=["note"])


class Silent:
    """A client that never answers a question."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, _: Any, __: Any) -> ElicitResult:
        self.asked += 1
        await asyncio.Event().wait()
        return YES


@asynccontextmanager
async def guarded(stack: Stack, auth: dict[str, str] | None = None, **limits: float) -> AsyncGenerator[Server]:
    async with serving(stack.redis.url, limits=limits, auth=auth or {}) as server:
        yield server


async def store_notes(agent: Agent, number: int = 2) -> list[str]:
    return [await agent.store(f"note {n}", tags=["note"], wait=False) for n in range(number)]


async def total(agent: Agent) -> int:
    return (await agent.call("get_agent_memories"))["total"]


async def test_unanswered_questions_leave_the_server_free(stack: Stack, namespace: str) -> None:
    silent = Silent()
    async with guarded(stack, calls_at_once=2, calls_waiting=0, questions=3) as server, AsyncExitStack() as opened:
        options: dict[str, Any] = {"elicitation_callback": silent}
        mallory = [
            await opened.enter_async_context(server.agent("mallory", namespace, "legacy", **options)) for _ in range(3)
        ]
        await store_notes(mallory[0])
        calls: list[asyncio.Task[Any]] = []
        for number, client in enumerate(mallory, 1):
            calls.append(asyncio.create_task(client.raw("clear_memory", tags=["note"])))
            await wait_until(lambda number=number: has_asked(silent, number))
        alice = await opened.enter_async_context(server.agent("alice", namespace))
        async with asyncio.timeout(20):
            await alice.store("Alice works.")
            assert await alice.search("Alice works", mode="keyword") == ["Alice works."]
            with pytest.raises(Refused) as refused:
                await mallory[0].call("clear_memory", tags=["note"])
        assert refused.value.code == "rate_limited"
        assert "confirm: true" in refused.value.text
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def has_asked(silent: Silent, number: int) -> bool:
    return silent.asked >= number


async def test_unanswered_question_ends_at_its_deadline(stack: Stack, namespace: str) -> None:
    options: dict[str, Any] = {"elicitation_callback": Silent()}
    async with (
        guarded(stack, question_seconds=0.5) as server,
        server.agent("alice", namespace, "legacy", **options) as alice,
        asyncio.timeout(20),
    ):
        await store_notes(alice)
        with pytest.raises(Refused) as refused:
            await alice.call("clear_memory", tags=["note"])
        assert refused.value.code == "confirmation_needed"
        assert await total(alice) == 2


async def _close_connection(_: Server, task: asyncio.Task[Any], *__: Any) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _end_session(server: Server, _: Any, token: str, session: dict[str, str]) -> None:
    async with httpx2.AsyncClient(headers=ACCEPT | {"Authorization": f"Bearer {token}"} | session) as client:
        assert (await client.delete(f"{server.url}/mcp")).status_code == 200


async def _revoke(server: Server, _: Any, token: str, __: Any) -> None:
    await revoke_token(server.service.backend, token.split("_")[1])


@pytest.mark.parametrize("end", [_close_connection, _end_session, _revoke])
async def test_question_ends_with_what_it_hangs_on(
    stack: Stack, namespace: str, end: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_server.mcp.tools.client_waits.CHECK_SECONDS", 0.2, raising=False)
    async with guarded(stack, {"mode": "tokens"}, calls_at_once=1, calls_waiting=0, questions=1) as server:
        token, other = await issued(server, "alice", namespace), await issued(server, "alice", namespace)
        session = {"Mcp-Session-Id": (await post(server, token, ASKING)).headers["mcp-session-id"]}
        asked, headers = asyncio.Event(), ACCEPT | {"Authorization": f"Bearer {token}"} | session

        async def ask() -> None:
            async with httpx2.AsyncClient(headers=headers, timeout=60) as client:
                await client.post(f"{server.url}/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"})
                async with client.stream("POST", f"{server.url}/mcp", json=CLEAR) as response:
                    async for line in response.aiter_lines():
                        if "elicitation/create" in line:
                            asked.set()

        answers: list[str] = []

        async def agree(_: Any, params: Any) -> ElicitResult:
            answers.append(params.message)
            return YES

        options: dict[str, Any] = {"elicitation_callback": agree}
        async with server.agent("alice", namespace, "legacy", token=other, **options) as again:
            await store_notes(again)
            task = asyncio.create_task(ask())
            await asyncio.wait_for(asked.wait(), 20)
            await end(server, task, token, session)

            async def may_ask_again() -> bool:
                return not (await again.raw("clear_memory", tags=["note"])).is_error

            await wait_until(may_ask_again, 20)
            assert await total(again) == 0
        assert len(answers) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_batch_never_asks(server: Server, namespace: str, mode: Any) -> None:
    asked: list[str] = []

    async def agree(_: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return YES

    async with server.agent("alice", namespace, mode, elicitation_callback=agree) as alice:
        await store_notes(alice)
        operations = [{"op": "clear_memory", "tags": ["note"]}, {"op": "clear_memory", "tags": "note", "confirm": True}]
        first, second = (await alice.call("batch_operations", operations=operations))["results"]
    assert asked == []
    assert first["error"]["code"] == "confirmation_needed"
    assert second["result"]["deleted"] == 2


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_yes_deletes_only_what_was_asked_about(server: Server, namespace: str, mode: Any) -> None:
    asked: list[str] = []
    async with server.agent("alice", namespace) as elsewhere:

        async def answer(_: Any, params: Any) -> ElicitResult:
            asked.append(params.message)
            if len(asked) > 1:
                return NO
            await elsewhere.call("clear_memory", memory_ids=first, confirm=True)
            for memory_id in others:
                await elsewhere.call("update_memory", memory_id=memory_id, tags=["note"])
            return YES

        others = [await elsewhere.store(f"precious {n}", tags=["precious"], wait=False) for n in range(2)]
        first = await store_notes(elsewhere)
        async with server.agent("alice", namespace, mode, elicitation_callback=answer) as alice:
            await alice.raw("clear_memory", tags=["note"])
        assert await total(elsewhere) == 2
        for memory_id in others:
            await elsewhere.call("retrieve_memory", memory_id=memory_id)


async def ask_raw(agent: Agent, asked: InputRequiredResult | None = None, answer: ElicitResult = YES) -> Any:
    """Send one round of a call that asks, with the answer to the round before."""
    responses: dict[str, Any] | None = dict.fromkeys(asked.input_requests or {}, answer) if asked else None
    return await agent.client.session.call_tool(
        "clear_memory",
        {"tags": ["note"]},
        input_responses=responses,
        request_state=asked.request_state if asked else None,
        allow_input_required=True,
    )


async def never(_: Any, __: Any) -> ElicitResult:
    raise AssertionError("the client library asked")


async def test_an_answer_counts_once(server: Server, namespace: str) -> None:
    async with server.agent("alice", namespace, "2026-07-28", elicitation_callback=never) as alice:
        await store_notes(alice)
        asked = await ask_raw(alice)
        assert isinstance(asked, InputRequiredResult)
        refused = await ask_raw(alice, asked, NO)
        assert isinstance(refused, CallToolResult)
        assert refused.is_error
        for _ in range(2):
            assert isinstance(await ask_raw(alice, asked, YES), InputRequiredResult)
            assert await total(alice) == 2
        accepted = await ask_raw(alice, await ask_raw(alice), YES)
        assert isinstance(accepted, CallToolResult)
        assert not accepted.is_error
        assert await total(alice) == 0


async def test_an_answer_counts_for_its_caller_only(server: Server, namespace: str) -> None:
    async with (
        server.agent("alice", namespace, "2026-07-28", elicitation_callback=never) as alice,
        server.agent("bob", namespace, "2026-07-28", elicitation_callback=never) as bob,
    ):
        await store_notes(alice)
        await store_notes(bob)
        asked = await ask_raw(alice)
        with suppress(MCPError):
            assert isinstance(await ask_raw(bob, asked), InputRequiredResult)
        assert await total(bob) == 2


async def test_questions_of_one_agent_do_not_grow_without_bound(stack: Stack, namespace: str) -> None:
    async with (
        guarded(stack, questions=2) as server,
        server.agent("alice", namespace, "2026-07-28", elicitation_callback=never) as alice,
    ):
        tags = [f"tag {n}" for n in range(3)]
        for tag in tags:
            for n in range(2):
                await alice.store(f"{tag} {n}", tags=["note", tag], wait=False)
        rounds = [
            await alice.client.session.call_tool("clear_memory", {"tags": [tag]}, allow_input_required=True)
            for tag in tags
        ]
        newest_first = list(zip(tags, rounds, strict=True))[::-1]
        kept = [await answered(alice, tag, asked) for tag, asked in newest_first]
    assert kept == [True, True, False]


async def answered(agent: Agent, tag: str, asked: Any) -> bool:
    """Whether the yes to a question is accepted."""
    result = await agent.client.session.call_tool(
        "clear_memory",
        {"tags": [tag]},
        input_responses=dict.fromkeys(asked.input_requests, YES),
        request_state=asked.request_state,
        allow_input_required=True,
    )
    return isinstance(result, CallToolResult) and not result.is_error
