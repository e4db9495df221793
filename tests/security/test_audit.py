"""The audit on the real stack: each operation leaves its entry, and the entries are sealed."""

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
from support.audit_helpers import checked, in_redis, is_sealed, noted
from support.auth_helpers import issued, post
from support.embedder_fixtures import wait_until
from support.redis_users import SERVER, SIDECAR
from support.stack import MASTER_KEY, Agent, Refused, Server, Stack, serving

from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.store.connection import connect
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.operations.sweeper import sweep_audits
from memory_server.security.audit import chain

CANARY = "canary-7f3a"


async def test_every_tool_leaves_one_entry_per_call_and_no_content(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    called: Counter[str] = Counter()

    async def call(tool: str, **arguments: Any) -> Any:
        called[tool] += 1
        return await alice.call(tool, **arguments)

    said = {"content": f"{CANARY} sleeps.", "context": CANARY, "tags": [CANARY], "metadata": {"of": CANARY}}
    mine = (await call("store_memory", wait=False, **said))["memory_id"]
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
        called["register_agent"] += 1
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
    entries = await noted(server, stack.client, namespace)
    assert Counter(entry["op"] for entry in entries) == called
    assert {entry["outcome"] for entry in entries} == {"ok"}
    assert {entry["who"] for entry in entries} == {"alice", "ben"}
    assert {entry["from"] for entry in entries} == {"http 127.0.0.1"}
    assert [entry["n"] for entry in entries] == [str(number + 1) for number in range(len(entries))]
    about_mine = {entry["op"] for entry in entries if mine in entry["ids"].split()}
    changed = {"store_memory", "update_memory", "clear_memory"}
    assert about_mine >= changed | {"retrieve_memory", "get_agent_memories", "semantic_search"}
    assert CANARY not in json.dumps(entries)


async def test_a_change_and_its_entry_are_one_write(alice: Agent, bob: Agent, stack: Stack, namespace: str) -> None:
    """What the Functions did not note, the server would when the call has ended, if it still lives then."""
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
    assert [entry["op"] for entry in await in_redis(stack.client, namespace) if "count" not in entry] == [
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
    return await client.hget(Keys(namespace).memory(memory_id), "model") == DEFAULT_MODEL.encode()


async def test_what_is_refused_leaves_an_entry_too_and_never_what_was_sent(
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
    inner = [{"op": tool, **arguments} for tool, arguments, _ in refused]
    await alice.call("batch_operations", operations=inner)
    entries = await noted(server, stack.client, namespace)
    assert [(entry["op"], entry["outcome"]) for entry in entries[: len(refused)]] == [
        (tool, code) for tool, _, code in refused
    ]
    among = Counter((entry["op"], entry["outcome"]) for entry in entries[len(refused) :])
    assert among == Counter((tool, code) for tool, _, code in refused) + Counter([("batch_operations", "ok")])
    assert entries[0]["ids"] == unknown
    assert entries[1]["ids"] == ""
    assert CANARY not in json.dumps(entries)


async def test_an_entry_tells_of_tokens_and_of_an_admin_who_acts_for_another(stack: Stack, namespace: str) -> None:
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
        entries = await noted(guarded, stack.client, namespace)
        for_alice = next(entry for entry in entries if entry["ids"] == stored)
        assert (for_alice["who"], for_alice["as"]) == ("boss", "alice")
        assert for_alice["from"] == f"http 127.0.0.1 token {boss.split('_')[1]}"
        forbidden = next(entry for entry in entries if entry["outcome"] == "forbidden")
        assert (forbidden["who"], forbidden["op"]) == ("alice", "store_memory")
        assert forbidden["from"].endswith(reader.split("_")[1])
        assert any(entry["op"] == "authenticate" and entry["outcome"] == "unauthenticated" for entry in entries)
        assert not any(part.split("_", 2)[2] in json.dumps(entries) for part in (boss, reader))
        await wait_until(lambda: is_sealed(stack.client, namespace))
        assert (await checked(guarded, stack.client, namespace)).ok


async def test_numbers_have_no_gap_under_many_calls_at_once_and_all_is_sealed_and_whole(
    server: Server, stack: Stack, namespace: str
) -> None:
    async with AsyncExitStack() as opened:
        agents = [await opened.enter_async_context(server.agent(f"a{n}", namespace)) for n in range(8)]
        mine = [await agent.store(f"Number {n}.", wait=False) for n, agent in enumerate(agents)]

        async def some(number: int) -> None:
            agent, memory_id = agents[number % 8], mine[number % 8]
            await agent.store(f"More {number}.", wait=False)
            await agent.call("retrieve_memory", memory_id=memory_id)
            await agent.raw("retrieve_memory", memory_id=new_id())
            await agent.call("semantic_search", query="number", mode="keyword")

        await asyncio.gather(*(some(number) for number in range(64)))
    entries = await noted(server, stack.client, namespace)
    assert len(entries) == 8 + 4 * 64
    assert [int(entry["n"]) for entry in entries] == list(range(1, len(entries) + 1))
    await wait_until(lambda: is_sealed(stack.client, namespace))
    report = await checked(server, stack.client, namespace)
    assert (report.ok, report.sealed_to, report.unsealed) == (True, len(entries), 0)


async def test_each_change_on_redis_itself_is_found(server: Server, alice: Agent, stack: Stack, namespace: str) -> None:
    for number in range(6):
        await alice.store(f"Number {number}.", wait=False)
        await wait_until(lambda: is_sealed(stack.client, namespace))
    keys, client, random = Keys(namespace), stack.client, Random(4)
    was = {key: await client.execute_command(b"XRANGE", key, "-", "+") for key in (keys.audit, keys.seals)}
    assert (await checked(server, client, namespace)).ok
    for _ in range(40):
        key = random.choice(list(was))
        await rewrite(client, key, spoilt(was[key], random))
        assert not (await checked(server, client, namespace)).ok
        await rewrite(client, key, was[key])
    assert (await checked(server, client, namespace)).ok


def spoilt(rows: list[Any], random: Random) -> list[Any]:
    """Change, remove, copy or exchange something."""
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
    """Put a stream in the place of one, as only somebody can who may do everything."""
    await client.delete(key)
    for at, parts in rows:
        await client.execute_command("XADD", key, at, *parts)


async def test_sealers_that_race_never_fork_the_chain(
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
    report = await checked(server, client, namespace)
    assert (report.ok, report.unsealed, report.entries) == (True, 0, 31)


async def test_a_sealer_that_died_with_the_lease_is_followed(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    await stack.client.set(Keys(namespace).sealer, "a dead process", px=chain.LEASE_MS)
    await alice.store("Sealed none the less.", wait=False)
    await wait_until(lambda: is_sealed(stack.client, namespace))
    assert (await checked(server, stack.client, namespace)).ok


async def test_what_a_killed_server_left_unsealed_is_sealed_by_the_sweep_of_another(
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
    process = started(command, environment)
    try:
        url = await asyncio.to_thread(announced, process)
        assert f":{port}/" not in url
        doomed = Server(url.removesuffix("/mcp"), server.runtime, server.service)
        calling = asyncio.create_task(call_on(doomed, namespace))
        await wait_until(lambda: has_entries(stack.client, namespace, 20))
        process.send_signal(signal.SIGKILL)
        await asyncio.gather(calling, return_exceptions=True)
    finally:
        process.kill()
        process.communicate()
    entries = await in_redis(stack.client, namespace)
    assert [int(entry["n"]) for entry in entries] == list(range(1, len(entries) + 1))
    await sweep_audits(server.service)
    await wait_until(lambda: is_sealed(stack.client, namespace))
    assert (await checked(server, stack.client, namespace)).ok


def started(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a server of which only what it says is heard."""
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def announced(process: subprocess.Popen[bytes]) -> str:
    """Give the address that a server prints at its start."""
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


async def test_reading_a_namespace_that_nobody_wrote_to_makes_no_index(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    await alice.call("get_agent_memories")
    assert await noted(server, stack.client, namespace)
    assert not await server.service.namespaces.knows(namespace)


async def test_a_resource_that_is_read_leaves_an_entry(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    stored = await alice.store("To be attached.", wait=False)
    await alice.client.read_resource(f"memory://{stored}")
    entries = await noted(server, stack.client, namespace)
    assert (entries[-1]["op"], entries[-1]["ids"], entries[-1]["outcome"]) == ("read_resource", stored, "ok")


async def test_the_sidecars_user_cannot_touch_audit_or_seals(stack: Stack, namespace: str) -> None:
    keys = Keys(namespace)
    async with connect(stack.redis.url_of(SIDECAR)) as sidecar:
        for key in (keys.audit, keys.seals, keys.counters):
            for command in (("XADD", key, "*", "a", "b"), ("DEL", key), ("EXPIRE", key, "1")):
                with pytest.raises(Exception, match="permission"):
                    await sidecar.execute_command(*command)
    await stack.client.execute_command("ACL", "LOG", "RESET")


async def test_a_purge_of_a_deleted_agent_leaves_its_entries(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    await alice.call("register_agent")
    await alice.store("Gone with me.", wait=False)
    before = len(await noted(server, stack.client, namespace))
    await alice.call("unregister_agent", memories="delete")
    assert len(await in_redis(stack.client, namespace)) == before + 1
