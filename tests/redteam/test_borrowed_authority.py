"""Attacks on authority: a narrow token, an admin who acts for another agent, and the operator's session."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from support import dashboard_fixtures
from support.auth_helpers import issued
from support.dashboard_helpers import Browser, log_in, operate
from support.ports import free_port
from support.stack import MASTER_KEY, Agent, Refused, Server, Stack, in_own_task, serving

from memory_core.records.names import check_name
from memory_server.access import tokens as token_store

pytestmark = pytest.mark.redteam
guarded = dashboard_fixtures.guarded
stranger = dashboard_fixtures.stranger
SECRET = "The vault of the north tower opens with the code 4711."
NEAR = "With which code does the vault of the north tower open?"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tokens(stack: Stack) -> AsyncGenerator[Server]:
    """A server that requires tokens and can encrypt memories."""
    settings: dict[str, Any] = {"auth": {"mode": "tokens"}, "embed_wait_seconds": 15.0, "master_key": MASTER_KEY}
    async with in_own_task(serving(stack.redis.url, **settings)) as server:
        yield server


async def code_of(agent: Agent, tool: str, /, **arguments: Any) -> str:
    try:
        await agent.call(tool, **arguments)
    except Refused as refused:
        return refused.code
    return "ok"


async def victim(server: Server, namespace: str) -> tuple[Agent, str, str]:
    """Connect a registered agent with a private and a sensitive memory; return both ids."""
    token = await issued(server, "victim", namespace)
    async with server.agent("victim", namespace, token=token) as agent:
        await agent.call("register_agent")
        return agent, await agent.store(SECRET), await agent.store(f"{SECRET} Sealed.", sensitive=True)


# A token with only the scope `tasks`


@pytest.mark.parametrize("memories", ["transfer", "delete", "keep"])
@pytest.mark.parametrize("path", ["tool", "batch"])
async def test_tasks_token_cannot_move_memories_or_end_grants(
    tokens: Server, namespace: str, memories: str, path: str
) -> None:
    _, private, sealed = await victim(tokens, namespace)
    whole, thief = await issued(tokens, "victim", namespace), await issued(tokens, "thief", namespace)
    weak = await issued(tokens, "victim", namespace, ["tasks"])
    async with (
        tokens.agent("victim", namespace, token=whole) as owner,
        tokens.agent("thief", namespace, token=thief) as other,
        tokens.agent("victim", namespace, token=weak) as attacker,
    ):
        await other.call("register_agent")
        grant = await owner.call("share_context_with_agent", target_agent="thief", memory_ids=[private])
        call = {"memories": memories, **({"transfer_to": "thief"} if memories == "transfer" else {})}
        if path == "tool":
            assert await code_of(attacker, "unregister_agent", **call) == "forbidden"
        else:
            answer = await attacker.call("batch_operations", operations=[{"op": "unregister_agent", **call}])
            assert answer["results"][0]["error"]["code"] == "forbidden"
        assert (await owner.call("retrieve_memory", memory_id=sealed))["memory"]["sensitive"] is True
        assert await code_of(other, "retrieve_memory", memory_id=sealed) == "not_found"
        assert grant["grant_id"] in str(await other.call("get_shared_context"))


async def test_tasks_token_cannot_write_a_memory_through_a_result(tokens: Server, namespace: str) -> None:
    weak = await issued(tokens, "worker", namespace, ["tasks"])
    reader = await issued(tokens, "worker", namespace, ["read"])
    async with (
        tokens.agent("worker", namespace, token=weak) as worker,
        tokens.agent("worker", namespace, token=reader) as reads,
    ):
        await worker.call("register_agent")
        await worker.call("distribute_task", description="Count the sheep.")
        (task,) = (await worker.call("get_pending_tasks"))["tasks"]
        end = {"task_id": task["task_id"], "lease_token": task["lease_token"], "result": "forty sheep"}
        assert await code_of(worker, "complete_task", **end, store_result=True) == "forbidden"
        assert await code_of(worker, "complete_task", **end) == "ok"
        assert (await reads.call("get_agent_memories"))["total"] == 0


@pytest.mark.parametrize("scope", ["write", "tasks"])
async def test_token_without_read_gets_no_stored_text(tokens: Server, namespace: str, scope: str) -> None:
    await victim(tokens, namespace)
    whole = await issued(tokens, "victim", namespace)
    weak = await issued(tokens, "victim", namespace, [scope])
    async with (
        tokens.agent("victim", namespace, token=whole) as owner,
        tokens.agent("victim", namespace, token=weak) as attacker,
    ):
        memory = await owner.store("Only for readers: the ferry leaves at nine.", tags=["ferry"], context="harbour")
        await owner.call("distribute_task", description="Only for readers: repair the ferry.", assign_to="victim")
        probes: list[tuple[str, dict[str, Any]]] = [
            ("store_memory", {"content": "When does the ferry leave?"}),
            ("update_memory", {"memory_id": memory, "priority": "high"}),
            ("distribute_task", {"description": "Only for readers: repair the ferry now."}),
            ("update_agent_heartbeat", {}),
        ]
        for tool, arguments in probes:
            result = await attacker.raw(tool, **arguments)
            assert "Only for readers" not in str(result), tool
            assert "harbour" not in str(result), tool


# An admin who acts for another agent


async def test_admin_acting_for_an_agent_sees_none_of_its_memories(tokens: Server, namespace: str) -> None:
    _, private, sealed = await victim(tokens, namespace)
    root = await issued(tokens, "root", namespace, ["admin"])
    async with tokens.agent("root", namespace, token=root) as admin:
        for arguments in ({"content": NEAR}, {"content": NEAR, "sensitive": True}, {"content": SECRET}):
            shown = str(await admin.raw("store_memory", agent_id="victim", **arguments))
            assert "4711" not in shown, arguments
            assert private not in shown, arguments
            assert sealed not in shown, arguments
        await admin.call("distribute_task", description=NEAR, assign_to="victim")
        shown = str(await admin.raw("get_pending_tasks", agent_id="victim", with_memories=20))
        assert NEAR in shown
        assert "4711" not in shown
        assert "unread_events" not in (await admin.call("update_agent_heartbeat", agent_id="victim"))


@pytest.mark.parametrize("receiver", ["root", "helper"])
async def test_admin_cannot_hand_an_agents_memories_to_anyone(tokens: Server, namespace: str, receiver: str) -> None:
    _, private, _ = await victim(tokens, namespace)
    root = await issued(tokens, "root", namespace, ["admin"])
    async with tokens.agent("root", namespace, token=root) as admin:
        await admin.call("register_agent", agent_id=receiver)
        call = {"agent_id": "victim", "memories": "transfer", "transfer_to": receiver}
        assert await code_of(admin, "unregister_agent", **call) == "forbidden"
        assert await code_of(admin, "retrieve_memory", memory_id=private) == "not_found"


async def test_admin_still_sees_public_memories_with_tasks_of_others(tokens: Server, namespace: str) -> None:
    await victim(tokens, namespace)
    whole, root = await issued(tokens, "victim", namespace), await issued(tokens, "root", namespace, ["admin"])
    async with (
        tokens.agent("victim", namespace, token=whole) as owner,
        tokens.agent("root", namespace, token=root) as admin,
    ):
        await owner.store("Everyone knows: the south gate is never locked.", visibility="public")
        await admin.call("distribute_task", description="Is the south gate locked?", assign_to="victim")
        (task,) = (await admin.call("get_pending_tasks", agent_id="victim"))["tasks"]
        assert [hit["memory"]["visibility"] for hit in task["memories"]] == ["public"]


# The operator


async def test_operator_session_changes_nothing(stranger: Browser, namespace: str) -> None:
    await operate(stranger, namespace)
    private = "0" * 26
    changing: dict[str, dict[str, Any]] = {
        "store_memory": {"content": "x"},
        "update_memory": {"memory_id": private, "priority": "low"},
        "clear_memory": {"memory_ids": [private], "confirm": True},
        "share_context_with_agent": {"target_agent": "victim", "context": "x"},
        "revoke_shared_context": {"grant_id": private},
        "distribute_task": {"description": "x"},
        "get_pending_tasks": {"agent_id": "victim"},
        "complete_task": {"task_id": private, "lease_token": "x"},
        "fail_task": {"task_id": private, "lease_token": "x", "error": "x"},
        "cancel_task": {"task_id": private},
        "requeue_task": {"task_id": private},
        "register_agent": {},
        "unregister_agent": {"agent_id": "victim"},
        "update_agent_heartbeat": {"agent_id": "victim"},
    }
    for tool, arguments in changing.items():
        assert await stranger.refused(tool, **arguments) == (403, "forbidden"), tool
        batch = await stranger.call("batch_operations", operations=[{"op": tool, **arguments}])
        assert batch["results"][0]["error"]["code"] == "forbidden", tool


async def test_operator_reads_public_texts_only(
    stranger: Browser, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stranger.server
    monkeypatch.setattr(token_store, "check_agent_name", check_name)  # an earlier release issued tokens for this name
    owner = await issued(server, "operator", namespace)
    async with server.agent("operator", namespace, token=owner) as agent:
        await agent.call("register_agent")
        private = await agent.store(SECRET)
        await agent.store("The gate of the north tower is green.", visibility="public")
        task = await agent.call("distribute_task", description="Paint the gate.", payload={"code": "4711"})
    await operate(stranger, namespace)
    assert await stranger.refused("retrieve_memory", memory_id=private) == (404, "not_found")
    asked: list[tuple[str, dict[str, Any]]] = [
        ("semantic_search", {"query": NEAR}),
        ("get_agent_memories", {"agent_id": "operator"}),
        ("dashboard_snippets", {"memory_ids": [private]}),
        ("dashboard_map", {}),
        ("dashboard_tasks", {}),
        ("dashboard_grants", {}),
        ("get_task", {"task_id": task["task_id"]}),
    ]
    for tool, arguments in asked:
        assert "4711" not in str(await stranger.call(tool, **arguments)), tool
    assert "gate of the north tower" in str(await stranger.call("semantic_search", query="What colour is the gate?"))
    for tool in ("list_tasks", "get_shared_context", "wait_for_events"):
        assert await stranger.refused(tool) == (403, "forbidden"), tool


async def test_operator_session_cannot_become_an_agent(stranger: Browser, namespace: str) -> None:
    await operate(stranger, namespace)
    stranger.scope = f"?agent=victim&namespace={namespace}"
    about = (await stranger.get("api/session")).json()
    assert about.get("agent") != "victim"
    assert await stranger.refused("store_memory", content="x", agent_id="victim") == (403, "forbidden")


@pytest.mark.parametrize("kind", ["operator", "token"])
async def test_cookie_alone_opens_nothing(stranger: Browser, namespace: str, kind: str) -> None:
    """Browsers send cookies to every port of a host, so another local server learns this one."""
    if kind == "operator":
        await operate(stranger, namespace)
    else:
        await log_in(stranger, "alice", namespace)
    ((name, value),) = stranger.client.cookies.items()
    assert str(stranger.server.url.rpartition(":")[2]) in name
    async with httpx2.AsyncClient(headers={"cookie": f"{name}={value}"}) as client:
        thief = Browser(stranger.server, client)
        assert await thief.refused("memory_stats") == (401, "unauthenticated")
        assert (await thief.get("api/events")).status_code == 401
        assert (await thief.get("api/session")).json()["login"] is True


async def test_log_of_a_server_has_no_one_time_url(stack: Stack, tmp_path: Path) -> None:
    command = ["-m", "memory_server", "serve", "--port", str(free_port()), "--data-dir", str(tmp_path)]
    environment = {**os.environ, "REDIS_URL": stack.redis.url}
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=log, stderr=log, env=environment
        )
    try:
        async with asyncio.timeout(60):
            while "redis-memory dashboard" not in (text := (tmp_path / "log").read_text()):
                assert process.returncode is None, text
                await asyncio.sleep(0.1)
    finally:
        process.terminate()
        await process.wait()
    assert "operator=" not in text
