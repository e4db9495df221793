"""How durable a write is when it is answered: in Redis, on its disk, on its replicas' disks."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from support.embedder_fixtures import RedisServer, wait_until
from support.ports import free_port
from support.redis_users import SERVER, denials
from support.stack import Agent, in_own_task, serving

from memory_core.records.keys import Keys
from memory_core.records.memory import Priority
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store.connection import connect
from memory_server.contract.arguments import StoreArguments
from memory_server.contract.memories import StoreAnswer
from memory_server.engine.request_context import Caller, DeferredWrites, RequestContext, Written
from memory_server.memories.store import store_memory
from memory_server.service import Service

CRITICAL = {"priority": "critical", "wait": False}
TEAM = "durable"
USUAL = "aof"
"""The shipped Redis user may not read `appendfsync`; other users see `aof-everysec` here."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def everysec(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RedisServer]:
    """A Redis that syncs once a second, as the embedded default does."""
    redis = RedisServer(tmp_path_factory.mktemp("everysec"), options=["--appendfsync", "everysec"])
    redis.start()
    try:
        yield redis
        async with connect(redis.url) as client:
            assert await denials(client) == set()
    finally:
        redis.kill()


@pytest_asyncio.fixture(loop_scope="session")
async def agent(everysec: RedisServer) -> AsyncGenerator[Agent]:
    """An agent of a server on that Redis."""
    async with in_own_task(_agent(everysec)) as agent:
        yield agent


@asynccontextmanager
async def _agent(redis: RedisServer, **durability: object) -> AsyncGenerator[Agent]:
    async with serving(redis.url_of(SERVER), durability=durability) as server, server.agent("alice", TEAM) as agent:
        yield agent


@asynccontextmanager
async def _service(redis: RedisServer, **durability: object) -> AsyncGenerator[Service]:
    async with Service(Settings.load(redis_url=redis.url_of(SERVER), durability=durability)).running() as service:
        yield service


async def test_only_critical_memories_are_synced_before_the_answer(agent: Agent) -> None:
    critical = await agent.call("store_memory", content="The vault opens at nine.", **CRITICAL)
    assert critical["durability"] == "synced"
    assert "unconfirmed" not in critical
    usual = await agent.call("store_memory", content="The cat sat.", wait=False)
    assert usual["durability"] == USUAL


async def test_update_is_synced_if_the_memory_was_or_becomes_critical(agent: Agent) -> None:
    stored = await agent.call("store_memory", content="The door is green.", wait=False)
    changes = ({"content": "The door is red."}, {"priority": "critical"}, {"priority": "low"}, {"tags": ["door"]})
    levels = [
        (await agent.call("update_memory", memory_id=stored["memory_id"], **change))["durability"] for change in changes
    ]
    assert levels == [USUAL, "synced", "synced", USUAL]


async def test_batch_with_a_critical_write_is_synced_by_one_wait(agent: Agent, everysec: RedisServer) -> None:
    async with connect(everysec.url) as client:
        before = await _waits(client)
        plain = [{"op": "store_memory", "content": f"Plain {number}."} for number in range(5)]
        critical = [
            {"op": "store_memory", "content": f"Grave {number}.", "priority": "critical"} for number in range(5)
        ]
        answer = await agent.call("batch_operations", operations=[*plain, *critical, {"op": "memory_stats"}])
        assert [one["result"].get("durability") for one in answer["results"]] == ["synced"] * 10 + [None]
        assert await _waits(client) == before + 1
        answer = await agent.call("batch_operations", operations=plain)
        assert [one["result"]["durability"] for one in answer["results"]] == [USUAL] * 5
        assert await _waits(client) == before + 1


async def test_synced_level_applies_to_every_write(everysec: RedisServer) -> None:
    async with _agent(everysec, level="synced") as agent:
        stored = await agent.call("store_memory", content="The sky is blue.", wait=False)
        changed = await agent.call("update_memory", memory_id=stored["memory_id"], tags=["sky"])
    assert [stored["durability"], changed["durability"]] == ["synced", "synced"]


async def test_concurrent_writes_share_few_waits(everysec: RedisServer) -> None:
    async with _service(everysec) as service, connect(everysec.url) as client:
        before = await _waits(client)
        answers = await asyncio.gather(*(_store(service, f"Share {number}.") for number in range(200)))
        assert {answer.durability for answer in answers} == {"synced"}
        assert await _waits(client) - before < 50


async def test_write_that_never_reaches_the_disk_is_not_called_synced(everysec: RedisServer) -> None:
    """With `appendfsync no` only earlier writes are synced, so a wait without the write's own offset would succeed."""
    async with connect(everysec.url) as client, _agent(everysec, wait_seconds=0.3) as agent:
        await client.config_set("appendfsync", "no")
        try:
            stored = await agent.call("store_memory", content="The safe is in the wall.", **CRITICAL)
            whole = await agent.raw("store_memory", content="And so is the key.", **CRITICAL)
        finally:
            await client.config_set("appendfsync", "everysec")
        assert stored["durability"] == USUAL
        assert "did not sync it within 0.3 s" in stored["unconfirmed"]
        assert "not confirmed on every disk" in str(whole.content)
        read = await agent.call("retrieve_memory", memory_id=stored["memory_id"])
        assert read["memory"]["content"] == "The safe is in the wall."


async def test_write_lost_before_the_wait_is_not_called_synced(everysec: RedisServer) -> None:
    async with _service(everysec) as service, connect(everysec.url) as client:
        batch = RequestContext(Caller(TEAM, "alice")).of_batch(DeferredWrites(), wait_seconds=60.0)
        news = [
            StoreArguments(content=f"Of two {number}.", priority=Priority.CRITICAL, wait=False) for number in range(2)
        ]
        kept, lost = [(await store_memory(service, batch, new)).memory_id for new in news]
        await client.delete(Keys(TEAM).memory(lost))
        reached = await service.durability.settled(batch)
        assert reached[kept].level == "synced"
        assert reached[lost].level == USUAL
        assert "it is gone" in (reached[lost].unconfirmed or "")
        alone = RequestContext(Caller(TEAM, "alice"))
        older = await service.durability.reached(alone, Written(TEAM, kept, 2), critical=True)
        assert older.level == USUAL, "revision 2 is not there yet"


async def test_critical_memory_without_an_aof_is_reported_as_in_memory(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path, options=["--appendonly", "no"])
    redis.start()
    try:
        async with _service(redis) as service:
            answer = await _store(service, "Nothing lasts.")
            assert answer.durability == "memory"
    finally:
        redis.kill()


async def test_redis_killed_during_the_wait_leaves_durability_unknown(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path, options=["--appendfsync", "no"])
    redis.start()
    try:
        async with _service(redis, wait_seconds=20) as service, connect(redis.url) as client:
            storing = asyncio.create_task(_store(service, "Mid-air."))

            async def waits() -> bool:
                return any(one["cmd"] == "waitaof" for one in await client.client_list())

            await wait_until(waits)
            redis.kill()
            answer = await storing
            assert answer.memory_id
            assert answer.unconfirmed
    finally:
        redis.kill()


async def test_critical_memory_waits_for_its_replica(tmp_path: Path) -> None:
    async with _master_and_replica(tmp_path) as (master, replica), _service(master, wait_seconds=5) as service:
        answer = await _store(service, "Two are better than one.")
        assert (answer.durability, answer.unconfirmed) == ("synced+1 replica", None)
        master.kill()
        async with connect(replica.url) as client:
            assert await client.exists(Keys(TEAM).memory(answer.memory_id))


async def test_hanging_replica_delays_only_one_answer(tmp_path: Path) -> None:
    async with _master_and_replica(tmp_path) as (master, replica), _service(master, wait_seconds=1.5) as service:
        assert (await _store(service, "Before.")).durability == "synced+1 replica"
        replica.signal(signal.SIGSTOP)
        slow = await _store(service, "The replica hangs.")
        after = await _store(service, "It is not asked again.")
        for answer in (slow, after):
            assert answer.durability == "synced"
            assert "replicas are too slow" in (answer.unconfirmed or "")


@asynccontextmanager
async def _master_and_replica(folder: Path) -> AsyncGenerator[tuple[RedisServer, RedisServer]]:
    ports = [free_port(), free_port()]
    folders = [folder / "master", folder / "replica"]
    of_master = ("--replicaof", f"127.0.0.1 {ports[0]}")
    for place in folders:
        place.mkdir()
    master, replica = (
        RedisServer(place, options=["--port", str(port), "--repl-diskless-sync-delay", "0", *more])
        for place, port, more in zip(folders, ports, [(), of_master], strict=True)
    )
    try:
        master.start()
        replica.start()
        async with connect(master.url) as client:

            async def follows() -> bool:
                state = (await client.info("replication")).get("slave0", {})
                return state.get("state") == "online"

            await wait_until(follows)
        yield master, replica
    finally:
        for redis in (replica, master):
            redis.kill()


async def _store(service: Service, content: str) -> StoreAnswer:
    new = StoreArguments(content=content, priority=Priority.CRITICAL, wait=False)
    return await store_memory(service, RequestContext(Caller(TEAM, "alice")), new)


async def _waits(client: Client) -> int:
    """How often Redis was asked to wait for a disk."""
    return (await client.info("commandstats")).get("cmdstat_waitaof", {}).get("calls", 0)
