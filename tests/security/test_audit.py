"""Audit on the real stack: each operation writes an entry, and entries are sealed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.audit_helpers import flushed_entries, is_sealed, read_entries, verify_audit
from support.auth_helpers import issued, post
from support.embedder_fixtures import wait_until
from support.redis_users import SERVER, SIDECAR
from support.stack import MASTER_KEY, Agent, Refused, Server, Stack, serving

from memory_core.records.ids import new_id
from memory_core.records.keys import Keys, vector_field
from memory_core.redis_client import Client
from memory_core.store.connection import connect
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.operations.sweeper import sweep_audits
from memory_server.security.audit import chain

CANARY = "canary-7f3a"


async def test_each_tool_call_writes_one_entry_without_content(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    called: Counter[str] = Counter()

    async def call(tool: str, **arguments: Any) -> Any:
        called[tool] += 1
        return await alice.call(tool, **arguments)

    arguments = {"content": f"{CANARY} sleeps.", "context": CANARY, "tags": [CANARY], "metadata": {"of": CANARY}}
    mine = (await call("store_memory", wait=False, **arguments))["memory_id"]
    await call("update_memory", memory_id=mine, content=f"{CANARY} wakes.")
    await call("retrieve_memory", memory_id=mine)
    await call("get_agent_memories", tags=[CANARY])
    await call("semantic_search", query=f"what does {CANARY}", mode="keyword")
    await wait_until(lambda: has_vector(stack.client, namespace, mine))
    await call("find_similar_memories", memory_id=mine)
    await call("register_agent", description=f"likes {CANARY}", capabilities=["code"])
    await call("list_agents")
    await call("update_agent_heartbeat", status="idle")
    async with server.agent("ben", namespace) as ben:
        await ben.call("register_agent")
        offer = await ben.call("share_context_with_agent", target_agent="alice", tags=["x"], bidirectional=True)
        called.update(["register_agent", "share_context_with_agent"])
    await call("answer_offer", offer_id=offer["offer_id"])
    grant = (await call("share_context_with_agent", target_agent="ben", context=CANARY, note=CANARY))["grant_id"]
    await call("get_shared_context")
    await call("revoke_shared_context", grant_id=grant)
    done = await call("distribute_task", description=f"feed {CANARY}", payload={"name": CANARY}, assign_to="alice")
    held = (await call("get_pending_tasks", with_memories=0))["tasks"][0]
    await call("complete_task", task_id=done["task_id"], lease_token=held["lease_token"], result=CANARY)
    again = await call("distribute_task", description=f"wash {CANARY}", assign_to="alice", max_retries=0)
    held = (await call("get_pending_tasks", with_memories=0))["tasks"][0]
    await call("fail_task", task_id=again["task_id"], lease_token=held["lease_token"], error=CANARY, retry=False)
    await call("requeue_task", task_id=again["task_id"])
    await call("cancel_task", task_id=again["task_id"], reason=CANARY)
    await call("get_task", task_id=done["task_id"])
    await call("list_tasks")
    await call("memory_stats")
    await call("gpu_status")
    await call("wait_for_events", timeout_seconds=0)
    await call("batch_operations", operations=[{"op": "gpu_status"}, {"op": "retrieve_memory", "memory_id": mine}])
    called.update(["gpu_status", "retrieve_memory"])
    await call("clear_memory", memory_ids=[mine])
    await call("unregister_agent", memories="keep")
    tools = {tool.name for tool in (await alice.client.list_tools()).tools}
    assert tools == set(called)
    entries = await flushed_entries(server, stack.client, namespace)
    assert Counter(entry["op"] for entry in entries) == called
    assert {entry["outcome"] for entry in entries} == {"ok"}
    assert {entry["who"] for entry in entries} == {"alice", "ben"}
    assert {entry["from"] for entry in entries} == {"http 127.0.0.1"}
    assert [entry["n"] for entry in entries] == [str(number + 1) for number in range(len(entries))]
    about_mine = {entry["op"] for entry in entries if mine in entry["ids"].split()}
    changed = {"store_memory", "update_memory", "clear_memory"}
    assert about_mine >= changed | {"retrieve_memory", "get_agent_memories", "semantic_search"}
    assert CANARY not in json.dumps(entries)


async def test_change_and_audit_entry_are_written_atomically(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    """The Function writes the entry, so that a server that dies before the call ends loses none."""
    await bob.call("register_agent")
    mine = await alice.store("The anchor holds.")
    await alice.call("update_memory", memory_id=mine, tags=["harbour"])
    grant = (await alice.call("share_context_with_agent", target_agent="bob", memory_ids=[mine]))["grant_id"]
    await alice.call("revoke_shared_context", grant_id=grant)
    await alice.call("clear_memory", memory_ids=[mine])
    await alice.call("register_agent")
    task = await alice.call("distribute_task", description="Weigh the anchor.", assign_to="alice")
    (held,) = (await alice.call("get_pending_tasks", with_memories=0))["tasks"]
    await alice.call("complete_task", task_id=task["task_id"], lease_token=held["lease_token"])
    assert [entry["op"] for entry in await read_entries(stack.client, namespace) if "count" not in entry] == [
        *(
            "register_agent",
            "store_memory",
            "update_memory",
            "share_context_with_agent",
            "revoke_shared_context",
            "clear_memory",
        ),
        *("register_agent", "distribute_task", "get_pending_tasks", "complete_task"),
    ]


async def has_vector(client: Client, namespace: str, memory_id: str) -> bool:
    return await client.hget(Keys(namespace).memory(memory_id), "model") == vector_field(DEFAULT_MODEL).encode()


async def test_refused_call_is_audited_without_its_arguments(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    unknown = new_id()
    refused: list[tuple[str, dict[str, Any], str]] = [
        ("retrieve_memory", {"memory_id": unknown}, "not_found"),
        ("retrieve_memory", {"memory_id": CANARY}, "not_found"),
        ("update_memory", {"memory_id": unknown, "content": CANARY}, "not_found"),
        ("update_memory", {"memory_id": unknown}, "invalid_argument"),
        ("store_memory", {"content": CANARY, "sensible": CANARY}, "invalid_argument"),
        ("store_memory", {"content": CANARY, "agent_id": "somebody"}, "forbidden"),
        ("complete_task", {"task_id": unknown, "lease_token": CANARY}, "not_found"),
        ("revoke_shared_context", {"grant_id": unknown}, "not_found"),
        ("update_agent_heartbeat", {}, "not_found"),
    ]
    for tool, arguments, code in refused:
        with pytest.raises(Refused) as refusal:
            await alice.call(tool, **arguments)
        assert refusal.value.code == code, tool
    assert await flushed_entries(server, stack.client, namespace) == []  # of a namespace without a key
    await alice.store("It begins.")
    for tool, arguments, _ in refused:
        with pytest.raises(Refused):
            await alice.call(tool, **arguments)
    inner = [{"op": tool, **arguments} for tool, arguments, _ in refused]
    await alice.call("batch_operations", operations=inner)
    entries = (await flushed_entries(server, stack.client, namespace))[1:]
    assert [(entry["op"], entry["outcome"]) for entry in entries[: len(refused)]] == [
        (tool, code) for tool, _, code in refused
    ]
    outcomes = Counter((entry["op"], entry["outcome"]) for entry in entries[len(refused) :])
    assert outcomes == Counter((tool, code) for tool, _, code in refused) + Counter([("batch_operations", "ok")])
    assert entries[0]["ids"] == unknown
    assert entries[1]["ids"] == ""
    assert CANARY not in json.dumps(entries)


async def test_entry_names_the_token_and_the_acting_admin(stack: Stack, namespace: str) -> None:
    settings = {"auth": {"mode": "tokens"}, "master_key": MASTER_KEY, "namespace": namespace}
    async with serving(stack.redis.url_of(SERVER), **settings) as guarded:
        boss = await issued(guarded, "boss", namespace, ["admin"])
        reader = await issued(guarded, "alice", namespace, ["read"])
        async with guarded.agent("boss", namespace, token=boss) as agent:
            stored = await agent.store("For alice.", agent_id="alice", wait=False)
        async with guarded.agent("alice", namespace, token=reader) as agent:
            with pytest.raises(Refused):
                await agent.store("Not hers to do.")
        assert (await post(guarded, boss[:-1])).status_code == 401
        entries = await flushed_entries(guarded, stack.client, namespace)
        for_alice = next(entry for entry in entries if entry["ids"] == stored)
        assert (for_alice["who"], for_alice["as"]) == ("boss", "alice")
        assert for_alice["from"] == f"http 127.0.0.1 token {boss.split('_')[1]}"
        forbidden = next(entry for entry in entries if entry["outcome"] == "forbidden")
        assert (forbidden["who"], forbidden["op"]) == ("alice", "store_memory")
        assert forbidden["from"].endswith(reader.split("_")[1])
        assert any(entry["op"] == "authenticate" and entry["outcome"] == "unauthenticated" for entry in entries)
        assert not any(part.split("_", 2)[2] in json.dumps(entries) for part in (boss, reader))
        await wait_until(lambda: is_sealed(stack.client, namespace))
        assert (await verify_audit(guarded, stack.client, namespace)).ok


@pytest.mark.long
async def test_concurrent_calls_leave_sealed_entries_without_gaps(server: Server, stack: Stack, namespace: str) -> None:
    async with AsyncExitStack() as opened:
        agents = [await opened.enter_async_context(server.agent(f"a{n}", namespace)) for n in range(8)]
        mine = [await agent.store(f"Number {n}.", wait=False) for n, agent in enumerate(agents)]

        async def mixed_calls(number: int) -> None:
            agent, memory_id = agents[number % 8], mine[number % 8]
            await agent.store(f"More {number}.", wait=False)
            await agent.call("retrieve_memory", memory_id=memory_id)
            await agent.raw("retrieve_memory", memory_id=new_id())
            await agent.call("semantic_search", query="number", mode="keyword")

        await asyncio.gather(*(mixed_calls(number) for number in range(64)))
    entries = await flushed_entries(server, stack.client, namespace)
    assert len(entries) == 8 + 4 * 64
    assert [int(entry["n"]) for entry in entries] == list(range(1, len(entries) + 1))
    await wait_until(lambda: is_sealed(stack.client, namespace))
    report = await verify_audit(server, stack.client, namespace)
    assert (report.ok, report.sealed_to, report.unsealed) == (True, len(entries), 0)


async def test_every_change_made_directly_in_redis_is_detected(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    for number in range(6):
        await alice.store(f"Number {number}.", wait=False)
        await wait_until(lambda: is_sealed(stack.client, namespace))
    keys, client, random = Keys(namespace), stack.client, Random(4)
    was = {key: await client.execute_command(b"XRANGE", key, "-", "+") for key in (keys.audit, keys.seals)}
    assert (await verify_audit(server, client, namespace)).ok
    for _ in range(40):
        key = random.choice(list(was))
        await rewrite(client, key, corrupted(was[key], random))
        assert not (await verify_audit(server, client, namespace)).ok
        await rewrite(client, key, was[key])
    assert (await verify_audit(server, client, namespace)).ok


def corrupted(rows: list[Any], random: Random) -> list[Any]:
    """Change, remove, copy or swap entries."""
    rows = [[at, list(parts)] for at, parts in rows]
    one, two = random.sample(range(len(rows)), 2)
    match random.randrange(4):
        case 0:
            place = random.randrange(len(rows[one][1]))
            rows[one][1][place] += b"x"
        case 1:
            del rows[one]
        case 2:
            milliseconds, _, number = rows[one][0].partition(b"-")
            rows.insert(one + 1, [milliseconds + b"-" + str(int(number) + 1).encode(), rows[two][1]])
        case _:
            rows[one][1], rows[two][1] = rows[two][1], rows[one][1]
    return rows


async def rewrite(client: Client, key: str, rows: list[Any]) -> None:
    """Replace a stream, which needs full rights in Redis."""
    await client.delete(key)
    for at, parts in rows:
        await client.execute_command("XADD", key, at, *parts)


async def test_racing_sealers_never_fork_the_chain(
    server: Server, alice: Agent, stack: Stack, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "AT_ONCE", 3)
    keys, client = Keys(namespace), stack.client
    await alice.store("To be there.", wait=False)

    async def race() -> None:
        for _ in range(10):
            await client.delete(keys.sealer)
            await chain.seal(server.service.backend, namespace)

    await asyncio.gather(*(alice.store(f"Number {n}.", wait=False) for n in range(30)), *(race() for _ in range(4)))
    await wait_until(lambda: is_sealed(client, namespace))
    report = await verify_audit(server, client, namespace)
    assert (report.ok, report.unsealed, report.entries) == (True, 0, 31)


async def test_another_sealer_takes_over_an_expired_lease(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    await stack.client.set(Keys(namespace).sealer, "a dead process", ex=chain.LEASE_SECONDS)
    await alice.store("Sealed none the less.", wait=False)
    await wait_until(lambda: is_sealed(stack.client, namespace))
    assert (await verify_audit(server, stack.client, namespace)).ok


@pytest.mark.long
async def test_sweep_seals_what_a_killed_server_left_unsealed(
    server: Server, stack: Stack, namespace: str, tmp_path: Path
) -> None:
    port = server.url.rpartition(":")[2]
    environment = {
        **os.environ,
        "REDIS_URL": stack.redis.url_of(SERVER),
        "MEMORY_MASTER_KEY": MASTER_KEY,
        "MEMORY_DATA_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "memory_server", "serve", "--port", "0"]
    process = start_server(command, environment)
    try:
        url = await asyncio.to_thread(announced_url, process)
        assert f":{port}/" not in url
        doomed = Server(url.removesuffix("/mcp"), server.runtime, server.service)
        calling = asyncio.create_task(call_on(doomed, namespace))
        await wait_until(lambda: has_entries(stack.client, namespace, 20))
        process.send_signal(signal.SIGKILL)
        await asyncio.gather(calling, return_exceptions=True)
    finally:
        process.kill()
        process.communicate()
    entries = await read_entries(stack.client, namespace)
    assert [int(entry["n"]) for entry in entries] == list(range(1, len(entries) + 1))
    await sweep_audits(server.service)
    await wait_until(lambda: is_sealed(stack.client, namespace))
    assert (await verify_audit(server, stack.client, namespace)).ok


def start_server(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a server and capture its output."""
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def announced_url(process: subprocess.Popen[bytes]) -> str:
    """Return the address that a server prints at start-up."""
    assert process.stdout is not None
    for line in process.stdout:
        found = [word for word in line.decode().split() if word.startswith("http://") and word.endswith("/mcp")]
        if found:
            return found[0]
    raise AssertionError("the server ended")


async def call_on(server: Server, namespace: str) -> None:
    async with server.agent("alice", namespace) as agent:
        await asyncio.gather(*(store_and_read(agent, number) for number in range(8)))


async def store_and_read(agent: Agent, number: int) -> None:
    for _ in range(200):
        memory_id = await agent.store(f"Number {number}.", wait=False)
        await agent.call("retrieve_memory", memory_id=memory_id)


async def has_entries(client: Client, namespace: str, number: int) -> bool:
    return await client.xlen(Keys(namespace).audit) >= number


async def test_reading_an_unknown_namespace_creates_neither_index_nor_audit(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    await alice.call("get_agent_memories")
    assert not await flushed_entries(server, stack.client, namespace)
    assert not await server.service.namespaces.knows(namespace)


async def test_reading_a_resource_writes_an_entry(server: Server, alice: Agent, stack: Stack, namespace: str) -> None:
    stored = await alice.store("To be attached.", wait=False)
    await alice.client.read_resource(f"memory://{stored}")
    entries = await flushed_entries(server, stack.client, namespace)
    assert (entries[-1]["op"], entries[-1]["ids"], entries[-1]["outcome"]) == ("read_resource", stored, "ok")


async def test_sidecar_user_cannot_touch_audit_or_seals(stack: Stack, namespace: str) -> None:
    keys = Keys(namespace)
    async with connect(stack.redis.url_of(SIDECAR)) as sidecar:
        for key in (keys.audit, keys.seals, keys.counters):
            for command in (("XADD", key, "*", "a", "b"), ("DEL", key), ("EXPIRE", key, "1")):
                with pytest.raises(Exception, match="permission"):
                    await sidecar.execute_command(*command)
    await stack.client.execute_command("ACL", "LOG", "RESET")


async def test_purging_a_deleted_agent_keeps_its_audit_entries(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    await alice.call("register_agent")
    await alice.store("Gone with me.", wait=False)
    before = len(await flushed_entries(server, stack.client, namespace))
    await alice.call("unregister_agent", memories="delete")
    assert len(await read_entries(stack.client, namespace)) == before + 1
