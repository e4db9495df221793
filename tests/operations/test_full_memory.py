"""Redis is above `maxmemory`: it refuses what adds to it, and everything that frees memory or ends something works."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from support.embedder_fixtures import RedisServer, running, wait_until
from support.redis_users import SERVER, SIDECAR
from support.sharing_helpers import share
from support.stack import MASTER_KEY, Agent, Refused, Server, in_own_task, serving
from support.transfer_helpers import Shell

from memory_core.crypto.keyring import load_keyring
from memory_core.crypto.sealing import Transports
from memory_core.records.access import check_scopes
from memory_core.records.keys import SWEEPER, Keys
from memory_core.records.vectors import Matrix
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store import functions
from memory_core.store.connection import connect
from memory_embedder.engines.fake import FakeEncoder
from memory_server.access.tokens import issue_token
from memory_server.engine.redis_backend import Backend
from memory_server.events.retention import trim_events
from memory_server.operations import key_rotation
from memory_server.operations.doctor import examine
from memory_server.operations.health.report import Finding
from memory_server.operations.sweeper import sweep, sweeping
from memory_server.security.audit.retention import trim
from memory_server.sharing.grants import remove_expired
from memory_server.tasks.lifecycle import BRIEF_BYTES

OPTIONS: dict[str, Any] = {
    "vector_store": {"embedding_model": "fake", "vector_dimension": 16},
    "master_key": MASTER_KEY,
    "port": 0,
    "tasks": {"backoff_seconds": 0.1},
    "cache": {"redis_ttl_seconds": 0},
}
LONG = " ".join(f"Sentence number {number} of a log that goes on for long." for number in range(200))
NS = "team"


class GatedEncoder(FakeEncoder):
    """Encodes only while its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, *arguments: Any, **options: Any) -> Matrix:
        assert self.gate.wait(20)
        return super().infer(*arguments, **options)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A Redis with a sidecar and a server."""

    redis: RedisServer
    client: Client
    encoder: GatedEncoder
    server: Server
    ann: Agent
    ben: Agent

    @property
    def keys(self) -> Keys:
        return Keys(NS)

    @property
    def shell(self) -> Shell:
        return Shell(self.redis.url_of(SERVER))

    @property
    def backend(self) -> Backend:
        return self.server.service.backend

    @asynccontextmanager
    async def full(self) -> AsyncGenerator[None]:
        """Lower `maxmemory` below what Redis uses."""
        await self.client.config_set("maxmemory", "1mb")
        try:
            yield
        finally:
            await self.client.config_set("maxmemory", "0")

    async def is_embedded(self, memory_id: str) -> bool:
        """Whether a memory has its vector."""
        return bool(await self.client.hexists(self.keys.memory(memory_id), "vec16_fake"))

    async def operations(self) -> list[str]:
        """The operations in the audit."""
        return [fields[b"op"].decode() for _, fields in await self.client.xrange(self.keys.audit)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def team(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Deployment]:
    """Two registered agents."""
    redis = RedisServer(tmp_path_factory.mktemp("full"))
    redis.start()
    transports = Transports(load_keyring(Settings.load(master_key=MASTER_KEY)).transports)
    async with AsyncExitStack() as parts:
        parts.callback(redis.kill)
        client = await parts.enter_async_context(connect(redis.url))
        encoder = GatedEncoder()
        await parts.enter_async_context(in_own_task(running(redis.url_of(SIDECAR), encoder, transports=transports)))
        server = await parts.enter_async_context(in_own_task(serving(redis.url_of(SERVER), **OPTIONS)))
        agents = [await parts.enter_async_context(in_own_task(server.agent(name, NS))) for name in ("ann", "ben")]
        for agent in agents:
            await agent.call("register_agent", heartbeat_seconds=600, max_tasks=60)
            await agent.store("A memory, so that the agent has an owner id.")
        yield Deployment(redis, client, encoder, server, *agents)


async def refused(agent: Agent, tool: str, /, **arguments: Any) -> Refused:
    """Call a tool that must be refused."""
    with pytest.raises(Refused) as error:
        await agent.call(tool, **arguments)
    return error.value


async def leased(team: Deployment, **options: Any) -> dict[str, Any]:
    """Submit a task as Ann and claim it as Ben."""
    submitted = await team.ann.call("distribute_task", description="Weigh the anchor.", assign_to="ben", **options)
    tasks = (await team.ben.call("get_pending_tasks", limit=20, with_memories=0))["tasks"]
    return next(task for task in tasks if task["task_id"] == submitted["task_id"])


def proof(task: dict[str, Any]) -> dict[str, Any]:
    return {"task_id": task["task_id"], "lease_token": task["lease_token"]}


# Refusals


async def test_full_redis_refuses_stores_and_says_what_to_do(team: Deployment) -> None:
    kept = await team.ann.store("The lighthouse is red.")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("store_memory", {"content": "One more."}),
        ("update_memory", {"memory_id": kept, "content": "The lighthouse is white."}),
        ("share_context_with_agent", {"target_agent": "ben", "memory_ids": [kept]}),
        ("distribute_task", {"description": "One more."}),
        ("register_agent", {}),
        ("get_pending_tasks", {}),
    ]
    async with team.full():
        for tool, arguments in calls:
            error = await refused(team.ann, tool, **arguments)
            assert (tool, error.code) == (tool, "store_full")
            assert "memory of Redis is full" in error.text
            assert "clear_memory" in error.text
            assert "maxmemory" in error.text


async def test_full_redis_still_answers_reads(team: Deployment) -> None:
    kept = await team.ann.store("The windmill is blue.")
    async with team.full():
        assert (await team.ann.call("retrieve_memory", memory_id=kept))["memory"]["memory_id"] == kept
        assert kept in str(await team.ann.call("get_agent_memories"))
        for query in ("windmill", "a text that no cache has"):
            found = await team.ann.call("semantic_search", query=query, min_score=0)
            assert found["partial"]
        await team.ann.call("memory_stats")
        await team.ann.call("gpu_status")


async def test_work_goes_on_after_relief(team: Deployment) -> None:
    async with team.full():
        await refused(team.ann, "store_memory", content="Too early.")
    later = await team.ann.store("Room again.")
    assert (await team.ann.call("retrieve_memory", memory_id=later))["memory"]["content"] == "Room again."


# Agents


async def test_memories_are_deleted_on_a_full_redis(team: Deployment) -> None:
    one, long = await team.ann.store("Delete me."), await team.ann.store(LONG, context="doomed")
    chunk = team.keys.chunk(long, 1)
    assert await team.client.exists(chunk)
    async with team.full():
        assert (await team.ann.call("clear_memory", memory_ids=[one]))["deleted"] == 1
        assert (await team.ann.call("clear_memory", context="doomed", confirm=True))["deleted"] == 1
        assert not await team.client.exists(team.keys.memory(one), team.keys.memory(long), chunk)
    assert (await team.operations()).count("clear_memory") >= 2


async def test_grants_and_offers_end_on_a_full_redis(team: Deployment) -> None:
    shared = await team.ann.store("To be shared.")
    grant = await share(team.ann, "ben", memory_ids=[shared])
    two_way = await team.ann.call("share_context_with_agent", target_agent="ben", context="harbour", bidirectional=True)
    async with team.full():
        await team.ann.call("revoke_shared_context", grant_id=grant)
        await team.ben.call("answer_offer", offer_id=two_way["offer_id"], accept=False)
        error = await refused(team.ben, "retrieve_memory", memory_id=shared)
        assert error.code == "not_found"


async def test_tasks_end_on_a_full_redis(team: Deployment) -> None:
    done, failed = await leased(team), await leased(team)
    cancelled = await team.ann.call("distribute_task", description="Never mind.", assign_to="ben")
    async with team.full():
        answer = await team.ben.call("complete_task", **proof(done), result="It is weighed.", store_result=True)
        assert (answer["state"], answer["partial"], "full" in answer["reason"]) == ("completed", True, True)
        answer = await team.ben.call("fail_task", **proof(failed), error="The chain is stuck.", retry=False)
        assert answer["state"] == "dead"
        answer = await team.ann.call("cancel_task", task_id=cancelled["task_id"], reason="The ship left.")
        assert answer["state"] == "cancelled"


@pytest.mark.parametrize(
    ("tool", "long"),
    [
        ("complete_task", {"result": "x" * (BRIEF_BYTES + 1)}),
        ("complete_task", {"result": "x", "metrics": {"log": "x" * BRIEF_BYTES}}),
        ("fail_task", {"error": "x" * (BRIEF_BYTES + 1)}),
        ("fail_task", {"error": "x", "handoff": "x" * BRIEF_BYTES}),
        ("cancel_task", {"reason": "x" * (BRIEF_BYTES + 1)}),
    ],
)
async def test_full_redis_refuses_long_texts_of_tasks(team: Deployment, tool: str, long: dict[str, Any]) -> None:
    task = await leased(team)
    agent, named = (team.ann, {"task_id": task["task_id"]}) if tool == "cancel_task" else (team.ben, proof(task))
    async with team.full():
        error = await refused(agent, tool, **named, **long)
        assert error.code == "store_full"
        assert str(BRIEF_BYTES) in error.text
        short = {name: "short" for name in long if name != "metrics"}
        await agent.call(tool, **named, **short)


async def test_heartbeats_keep_leases_and_add_nothing(team: Deployment) -> None:
    task = await leased(team)
    async with team.full():
        before = await team.client.hget(team.keys.task(task["task_id"]), "lease_until")
        beats = {"lease_tokens": [task["lease_token"]], "status": "busy", "load": 0.5}
        answer = await team.ben.call("update_agent_heartbeat", **beats)
        beats_before = (await team.operations()).count("update_agent_heartbeat")
        events = await _agent_events(team)
        for _ in range(20):
            answer = await team.ben.call("update_agent_heartbeat", **beats, metrics={"log": "x" * 1000})
        assert list(answer["leases_renewed"]) == [task["task_id"]]
        assert "metrics" in answer["reason"]
        assert await team.client.hget(team.keys.task(task["task_id"]), "lease_until") > before
        assert (await team.operations()).count("update_agent_heartbeat") == beats_before
        assert await _agent_events(team) == events
    await team.server.service.auditor.flush()
    assert (await team.operations()).count("update_agent_heartbeat") > beats_before
    await team.ben.call("complete_task", **proof(task))


async def _agent_events(team: Deployment) -> list[bytes]:
    return [entry for entry, fields in await team.client.xrange(team.keys.events) if fields[b"kind"] == b"agent"]


async def test_agent_leaves_a_full_redis(team: Deployment) -> None:
    async with team.server.agent("cat", NS) as cat:
        await cat.call("register_agent")
        stored = await cat.store("Mine.")
        async with team.full():
            await cat.call("unregister_agent", memories="delete")
            await sweep(team.server.service, patience=0)
            assert not await team.client.exists(team.keys.memory(stored))
            assert not await team.client.scard(team.keys.tombstones)


async def test_new_server_on_a_full_redis_deletes(team: Deployment) -> None:
    doomed = await team.ann.store("For the new server.", context="new server")
    async with team.full(), serving(team.redis.url_of(SERVER), **OPTIONS) as server, server.agent("ann", NS) as ann:
        assert (await ann.call("clear_memory", context="new server"))["deleted"] == 1
    assert not await team.client.exists(team.keys.memory(doomed))


# Background work


async def test_sweeper_frees_on_a_full_redis(team: Deployment) -> None:
    service, keys, client = team.server.service, team.keys, team.client
    await share(team.ann, "ben", tags=["brief"], expires_in_seconds=1)
    task = await leased(team, lease_seconds=1)
    async with team.server.agent("dan", NS) as dan:
        await dan.call("register_agent", heartbeat_seconds=0.2)
    long = await team.ann.store(LONG)
    leftover = keys.chunk(long, 1)
    await client.delete(keys.memory(long))  # as if a server died after it deleted a long memory
    await client.zadd(keys.chores, {f"{long}:99": 0})
    forgotten = await team.ann.store("Its job is lost.")
    await wait_until(lambda: team.is_embedded(forgotten))
    await client.hdel(keys.memory(forgotten), "vec16_fake")
    await client.hset(keys.memory(forgotten), "model", "none:vec16_fake")
    async with team.full():
        await client.delete(SWEEPER)
        await asyncio.sleep(1.2)  # the lease, the grant and the agent's silence end
        await sweep(service, patience=0)
        async with sweeping(service):
            await wait_until(lambda: client.exists(SWEEPER))
        assert not await client.exists(leftover)
        assert not await client.zcount(keys.grants_due, "-inf", time.time())
        assert await client.hget(keys.agent("dan"), "status") == b"dead"
        assert await client.hget(keys.task(task["task_id"]), "state") == b"pending"
        await remove_expired(team.backend, NS, 10)
        assert await trim_events(team.backend, NS, kept=5, trimmed_from=5)
    await team.ann.call("cancel_task", task_id=task["task_id"], reason="Enough.")
    await sweep(service, patience=0)
    await wait_until(lambda: team.is_embedded(forgotten))


async def test_audit_is_sealed_and_trimmed_on_a_full_redis(team: Deployment) -> None:
    doomed = [await team.ann.store(f"Doomed {number}.") for number in range(3)]
    service, client, keys = team.server.service, team.client, team.keys
    await wait_until(service.auditor.seal)
    seals, entries = await client.xlen(keys.seals), await client.xlen(keys.audit)
    settings = service.settings.audit.model_copy(update={"keep_entries": 1, "keep_days": 0})
    async with team.full():
        await team.ann.call("clear_memory", memory_ids=doomed, confirm=True)
        await wait_until(service.auditor.seal)
        assert await client.xlen(keys.seals) > seals
        assert await trim(team.backend, NS, settings)
        assert await client.xlen(keys.audit) < entries


async def test_sidecar_acknowledges_jobs_of_deleted_memories(team: Deployment) -> None:
    jobs = team.keys.jobs("fake")
    await wait_until(lambda: _is_empty(team.client, jobs))
    team.encoder.gate.clear()
    kept, doomed = [await team.ann.store(f"Embedded later {number}.", wait=False) for number in range(2)]
    async with team.full():
        team.encoder.gate.set()
        await team.ann.call("clear_memory", memory_ids=[doomed])

        async def is_only_the_other_left() -> bool:
            return [fields[b"id"] for _, fields in await team.client.xrange(jobs)] == [kept.encode()]

        await wait_until(is_only_the_other_left)
        assert not await team.is_embedded(kept)
    await wait_until(lambda: team.is_embedded(kept))
    await wait_until(lambda: _is_empty(team.client, jobs))


async def test_sidecar_buries_bad_jobs_on_a_full_redis(team: Deployment) -> None:
    buried = await team.client.xlen(team.keys.dead_jobs)
    pipe = team.client.pipeline(transaction=True)  # so that the sidecar reads the job only when Redis is full
    pipe.xadd(team.keys.jobs("fake"), {"nonsense": "x"})
    pipe.config_set("maxmemory", "1mb")
    await pipe.execute()
    async with team.full():

        async def is_buried() -> bool:
            return await team.client.xlen(team.keys.dead_jobs) > buried

        await wait_until(is_buried)
    assert await _is_empty(team.client, team.keys.jobs("fake"))


async def _is_empty(client: Client, stream: str) -> bool:
    return not await client.xlen(stream)


async def test_changed_library_is_not_called_while_it_cannot_be_replaced(team: Deployment) -> None:
    await team.client.execute_command("FUNCTION", "LOAD", "REPLACE", functions.library_code() + "-- changed")
    try:
        async with team.full():
            await team.backend.check_library()
            error = await refused(team.ann, "store_memory", content="For the changed Functions.")
            assert "cannot be loaded" in error.text
            assert "raise maxmemory" in error.text
        await team.backend.check_library()
        assert await team.ann.store("For the Functions of this release.")
    finally:
        await team.client.execute_command("FUNCTION", "LOAD", "REPLACE", functions.library_code())


async def test_model_change_is_ended_on_a_full_redis(team: Deployment) -> None:
    kept = await team.ann.store("Has two vectors.")
    await wait_until(lambda: team.is_embedded(kept))
    key, other = team.keys.memory(kept), {"other_model": "old", "other_field": "vec_old", "other_dimension": 16}
    await team.client.hset(key, mapping={"vec_old": b"x" * 64, "model": "vec16_fake\x1fold"})
    await team.client.hset(team.keys.meta, mapping={**other, "other_version": 7, "phase": "dropping"})
    async with team.full():
        result = await team.shell.run("reindex", "--drop-old", "--namespace", NS)
        assert result.code == 0, result.output
    assert not await team.client.hexists(key, "vec_old")
    assert not await team.client.hexists(team.keys.meta, "other_model")
    assert await team.is_embedded(kept)


async def test_key_rotation_is_finished_on_a_full_redis(team: Deployment) -> None:
    async with team.server.agent("eli", NS) as eli:
        secret = await eli.store("The code is 4711.", sensitive=True)
        owner = (await team.client.hget(team.keys.memory(secret), "owner") or b"").decode()
        key = team.keys.data_key(owner)
        before = (await team.client.hget(key, "current") or b"").decode()
        await key_rotation._add_version(team.backend, NS, owner, before)  # pyright: ignore[reportPrivateUsage]
        async with team.full():
            await eli.call("clear_memory", memory_ids=[secret])
            result = await team.shell.run("keys", "rotate", "--agent", "eli", "--namespace", NS)
            assert result.code == 0, result.output
    assert await team.client.hlen(key) == 2  # the new version, and which one is current


# The console


async def test_operator_relieves_a_full_redis(team: Deployment) -> None:
    stored = await team.ben.store("Poison.")
    grant = await share(team.ben, "ann", memory_ids=[stored])
    token, _ = await issue_token(team.backend, agent="eve", namespace=NS, scopes=check_scopes(["read"]), seconds=60)
    where = ("--namespace", NS)
    async with team.full():
        commands: list[tuple[str, ...]] = [
            ("quarantine", "add", "ben", *where),
            ("purge", "ben", "--confirm", *where),
            ("quarantine", "remove", "ben", *where),
            ("agents", "revoke", token.id),
            ("grants", "revoke", grant, *where),
        ]
        for words in commands:
            result = await team.shell.run(*words)
            assert (words, result.code) == (words, 0), result.output
        assert not await team.client.exists(team.keys.memory(stored))
        assert await team.client.hget(f"rm:token:{{{token.id}}}", "revoked") == b"1"
        with suppress(Exception):
            await issue_token(team.backend, agent="eve", namespace=NS, scopes=check_scopes(["read"]), seconds=60)
    operations = await team.operations()
    assert operations[-1] != "token_issue"
    assert {"quarantine", "purge", "lift_quarantine", "token_revoke"} <= set(operations)


@pytest.mark.long
async def test_what_doctor_advises_for_a_full_redis_works(team: Deployment) -> None:
    options: dict[str, Any] = {**OPTIONS, "redis_url": team.redis.url}
    settings = Settings.load(**options)
    before = await _used(team)
    for number in range(8):
        await team.ann.store(os.urandom(200_000).hex(), context="large", wait=False, metadata={"n": number})
    used = await _used(team)
    await team.client.config_set("maxmemory", (before + used) // 2)
    try:
        fault = await _memory_fault(settings)
        assert fault is not None
        assert "clear_memory" in fault.remedy
        assert "maxmemory" in fault.remedy
        assert (await refused(team.ann, "store_memory", content="No room.")).code == "store_full"
        await team.ann.call("clear_memory", context="large", confirm=True)
        assert await team.ann.store("Room by deleting.")
        await team.client.config_set("maxmemory", used * 4)
        assert await team.ann.store("Room by the limit.")
        assert await _memory_fault(settings) is None
    finally:
        await team.client.config_set("maxmemory", "0")


async def _used(team: Deployment) -> int:
    """The bytes that Redis uses."""
    return int((await team.client.info("memory"))["used_memory"])


async def _memory_fault(settings: Settings) -> Finding | None:
    """What doctor says about the memory of Redis."""
    report = await examine(settings, deep=False)
    return next((fault for fault in report.faults if fault.id == "redis.memory"), None)
