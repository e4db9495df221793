"""The doctor finds no fault in a healthy deployment, and each fault that a test plants on a real Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from redis.exceptions import NoPermissionError
from support.doctor_helpers import KEY, MODEL, Deployment, empty_deployment, healthy_deployment, only_fault
from support.embedder_fixtures import RedisServer
from support.redis_users import SIDECAR
from support.stack import in_own_task

from memory_core.records.keys import NAMESPACES, Keys
from memory_core.records.model import Model
from memory_core.records.vectors import to_stored
from memory_core.settings.settings import Settings
from memory_core.store import functions, index
from memory_core.store.connection import connect, unsafe
from memory_core.store.index import ensure_namespace
from memory_server.operations.health.report import Severity

Plant = Callable[[Deployment], Awaitable[Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def team(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Deployment]:
    """A healthy deployment. Each test repairs what it breaks."""
    async with in_own_task(healthy_deployment(tmp_path_factory.mktemp("team"))) as found:
        found.settings["master_key"] = KEY
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def empty(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Deployment]:
    """A Redis without sidecars or memories."""
    async with in_own_task(empty_deployment(tmp_path_factory.mktemp("empty"))) as found:
        yield found


async def command(found: Deployment, *words: Any) -> Any:
    """Run a command as an administrator would."""
    return await found.client.execute_command(*words)


async def test_healthy_deployment_has_no_faults(team: Deployment) -> None:
    for deep in (False, True):
        report = await team.examine(deep=deep)
        assert report.healthy, report.text()
        assert {finding.severity for finding in report.findings} == {Severity.OK}
    assert {"deep.records", "deep.recall", "audit.seals"} <= {finding.id for finding in report.findings}


# Redis

REDIS_FAULTS: dict[str, tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], str]] = {
    "redis.policy": (
        [("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")],
        [("CONFIG", "SET", "maxmemory-policy", "noeviction")],
        "maxmemory-policy noeviction",
    ),
    "redis.persistence": (
        [("CONFIG", "SET", "appendonly", "no")],
        [("CONFIG", "SET", "appendonly", "yes")],
        "appendonly yes",
    ),
    "redis.memory": ([("CONFIG", "SET", "maxmemory", "1mb")], [("CONFIG", "SET", "maxmemory", "0")], "raise maxmemory"),
    "redis.search": (
        [("FT.CONFIG", "SET", "ON_TIMEOUT", "RETURN")],
        [("FT.CONFIG", "SET", "ON_TIMEOUT", "FAIL")],
        "ON_TIMEOUT FAIL",
    ),
    "redis.functions": (
        [("FUNCTION", "LOAD", "REPLACE", functions.library_code() + "\n-- of another release")],
        [("FUNCTION", "LOAD", "REPLACE", functions.library_code())],
        "change the passwords of Redis",
    ),
}


@pytest.mark.parametrize("fault", REDIS_FAULTS)
async def test_redis_fault_is_reported_with_a_remedy(team: Deployment, fault: str) -> None:
    plant, repair, remedy = REDIS_FAULTS[fault]
    for words in plant:
        await command(team, *words)
    try:
        found = only_fault(await team.examine())
        assert (found[0], remedy in found[1]) == (fault, True)
    finally:
        for words in repair:
            await command(team, *words)
    assert (await team.examine()).healthy


async def test_doctor_says_what_compact_hashes_would_save(team: Deployment) -> None:
    async def seen() -> str:
        report = await team.examine()
        assert report.healthy
        return next(finding.seen for finding in report.findings if finding.id == "redis.encoding")

    assert "hash-max-listpack-value 4096 in redis.conf" in await seen()
    await command(team, "CONFIG", "SET", "hash-max-listpack-value", "4096")
    try:
        assert await seen() == "hashes are stored compactly"
    finally:
        await command(team, "CONFIG", "SET", "hash-max-listpack-value", "64")


async def test_acl_denial_is_reported(team: Deployment) -> None:
    async with connect(team.redis.url_of(SIDECAR)) as sidecar:
        with pytest.raises(NoPermissionError):
            await sidecar.get(team.keys.meta)
    report = await team.examine()
    assert only_fault(report)[0] == "redis.acl"
    assert "rm-sidecar the command get" in report.faults[0].seen
    await command(team, "ACL", "LOG", "RESET")
    assert (await team.examine()).healthy
    await command(team, "CONFIG", "RESETSTAT")


async def test_database_other_than_0_is_reported(team: Deployment) -> None:
    found = only_fault(await team.examine(redis_url=f"{team.redis.url}?db=3"))
    assert found == ("redis.database", "remove it from the URL")


async def test_missing_query_engine_is_reported(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path, query_engine=False)
    redis.start()
    try:
        async with connect(redis.url) as client:
            found = Deployment(redis, client, {"redis_url": redis.url, "vector_store": MODEL, "port": 0})
            fault, remedy = only_fault(await found.examine())
    finally:
        redis.kill()
    assert (fault, "Query Engine" in remedy) == ("redis.modules", True)


def test_old_redis_version_is_reported() -> None:
    problems = unsafe({"redis_version": "7.4.1"}, [{b"name": b"search"}], 0)
    assert list(problems) == ["version"]
    assert "upgrade" in problems["version"].hint


@pytest.mark.parametrize(
    ("url", "remedy"),
    [("unix:///nowhere/redis.sock", "doctor"), ("unix://rm-server:wrong@{}", "fix REDIS_URL")],
)
async def test_unreachable_redis_and_wrong_password_are_told_apart(team: Deployment, url: str, remedy: str) -> None:
    found = only_fault(await team.examine(redis_url=url.format(team.redis.path)))
    assert (found[0], remedy in found[1]) == ("redis.answer", True)
    await command(team, "ACL", "LOG", "RESET")
    await command(team, "CONFIG", "RESETSTAT")


async def test_clock_difference_is_reported(team: Deployment) -> None:
    report = await team.examine(clock=lambda: time.time() + 90)
    assert (only_fault(report)[0], "90.0 s ahead" in report.faults[0].seen) == ("clock", True)
    assert "NTP" in only_fault(report)[1]


# Sidecars

SIDECAR_FAULTS: dict[str, tuple[dict[str, Any] | None, dict[str, Any], str]] = {
    "sidecars.alive": (None, {}, "start redis-memory-embedder"),
    "sidecars.model": ({"model": "another"}, {}, "redis-memory-embedder --model fake"),
    "sidecars.ready": ({"state": "starting"}, {}, "wait while it loads"),
    "sidecars.key": ({}, {"master_key": KEY}, "MEMORY_TRANSPORT_KEY"),
    "gpu.fallback": ({"fallback": "no CUDA device"}, {}, "redis-memory-gpu[gpu]"),
}


@pytest.mark.parametrize("fault", SIDECAR_FAULTS)
async def test_sidecar_fault_is_reported_with_a_remedy(empty: Deployment, fault: str) -> None:
    status, settings, remedy = SIDECAR_FAULTS[fault]
    if status is not None:
        await empty.announce(**status)
    try:
        found = only_fault(await empty.examine(**settings))
    finally:
        await empty.withdraw()
    assert (found[0], remedy in found[1]) == (fault, True)


async def test_missing_weights_are_reported(empty: Deployment) -> None:
    report = await empty.examine(vector_store={"embedding_model": "/nowhere/model", "vector_dimension": 16})
    assert [finding.id for finding in report.faults] == ["sidecars.alive", "weights"]
    assert "vector_store.embedding_model" in report.faults[1].remedy


# Namespaces


async def set_another_model(team: Deployment) -> None:
    await team.client.hset(team.keys.meta, "model", "older")


async def restore_model(team: Deployment) -> None:
    await team.client.hset(team.keys.meta, "model", "fake")


async def drop_index(team: Deployment) -> None:
    await team.drop()


async def restore_index(team: Deployment) -> None:
    await ensure_namespace(team.client, "team", Settings.load(**team.settings).vector_store)
    await team.rebuild()


async def rebuild_with_fewer_edges(team: Deployment) -> None:
    await team.rebuild(m=8)


async def add_rejected_record(team: Deployment) -> None:
    await team.client.hset(team.keys.memory("odd"), mapping={"content": "odd", "created_at": "soon"})


async def delete_rejected_record(team: Deployment) -> None:
    await team.client.delete(team.keys.memory("odd"))
    await team.rebuild()


async def add_failed_job(team: Deployment) -> None:
    await team.client.xadd(team.keys.dead_jobs, {"id": "some"})


async def delete_failed_jobs(team: Deployment) -> None:
    await team.client.delete(team.keys.dead_jobs)


async def add_forged_seal(team: Deployment) -> None:
    await team.client.xadd(team.keys.seals, {"chain": "0" * 64, "to": "99"})


async def delete_forged_seal(team: Deployment) -> None:
    last = (await team.client.xrevrange(team.keys.seals, count=1))[0][0]
    await team.client.xdel(team.keys.seals, last)


NAMESPACE_FAULTS: dict[str, tuple[Plant, Plant, str]] = {
    "namespace.model": (set_another_model, restore_model, "use --model older"),
    "index.missing": (drop_index, restore_index, "creates the index again"),
    "index.definition": (rebuild_with_fewer_edges, restore_index, "reindex --namespace team"),
    "index.failures": (add_rejected_record, delete_rejected_record, "--deep names the records"),
    "jobs.dead": (add_failed_job, delete_failed_jobs, "DEL 'rm:{team}:jobs:dead'"),
    "audit.seals": (add_forged_seal, delete_forged_seal, "audit verify --namespace team"),
}


@pytest.mark.parametrize("fault", NAMESPACE_FAULTS)
async def test_namespace_fault_is_reported_with_a_remedy(team: Deployment, fault: str) -> None:
    plant, repair, remedy = NAMESPACE_FAULTS[fault]
    await plant(team)
    try:
        report = await team.examine()
        assert (only_fault(report)[0], remedy in only_fault(report)[1], report.faults[0].where) == (fault, True, "team")
    finally:
        await repair(team)
    assert (await team.examine()).healthy


async def test_missing_master_key_is_reported(team: Deployment) -> None:
    found = only_fault(await team.examine(master_key=None))
    assert (found[0], "MEMORY_MASTER_KEY" in found[1]) == ("keys.missing", True)


async def test_stuck_embed_jobs_are_reported(empty: Deployment) -> None:
    await empty.announce()
    await ensure_namespace(empty.client, "idle", Settings.load(**empty.settings).vector_store)
    await empty.client.xadd(Keys("idle").jobs("fake"), {"id": "some"}, id=f"{int((time.time() - 120) * 1000)}-0")
    try:
        report = await empty.examine()
    finally:
        await empty.client.flushall()
    assert (only_fault(report)[0], "another sidecar" in only_fault(report)[1]) == ("jobs.stuck", True)
    assert "1 text waits for its vector" in report.faults[0].seen


# Deep


async def nan_vector(team: Deployment) -> None:
    await team.client.hset(team.keys.memory(team.memory), "vec16_fake", np.full(16, np.nan, "<f2").tobytes())


async def short_vector(team: Deployment) -> None:
    await team.client.hset(team.keys.memory(team.memory), "vec16_fake", b"1234")


async def long_vector(team: Deployment) -> None:
    await team.client.hset(team.keys.memory(team.memory), "vec16_fake", np.full(16, 7, "<f2").tobytes())


async def older_model(team: Deployment) -> None:
    await team.client.hset(team.keys.memory(team.memory), "model", "older")


async def no_vector(team: Deployment) -> None:
    await team.client.hset(team.keys.memory(team.memory), mapping={"model": "none:vec16_fake", "updated_at": "1"})
    await team.client.hdel(team.keys.memory(team.memory), "vec16_fake")


async def orphan(team: Deployment) -> None:
    await command(team, "COPY", team.keys.chunk(team.long, 1), team.keys.chunk(team.long, 99))
    await command(team, "COPY", team.keys.chunk(team.long, 1), team.keys.chunk(team.memory, 1))


async def no_orphan(team: Deployment) -> None:
    await team.client.delete(team.keys.chunk(team.long, 99), team.keys.chunk(team.memory, 1))


async def lost_chunk(team: Deployment) -> None:
    await command(team, "RENAME", team.keys.chunk(team.long, 1), "aside")


async def restored_chunk(team: Deployment) -> None:
    await command(team, "RENAME", "aside", team.keys.chunk(team.long, 1))


async def unindexed(team: Deployment) -> None:
    """Create the index without scanning existing records."""
    await team.drop()
    settings = Settings.load(**team.settings).vector_store
    fields = index.memory_fields(settings.model, settings.hnsw)
    prefixes = [team.keys.memory_prefix, team.keys.chunk_prefix]
    await index.create_index(team.client, team.keys.index(), prefixes, fields, scan=False, alias=team.keys.index_alias)


async def restore(team: Deployment) -> None:
    """Restore the memory that tests change."""
    await command(team, "COPY", "kept", team.keys.memory(team.memory), "REPLACE")


DEEP_FAULTS: dict[str, tuple[str, Plant, Plant, str]] = {
    "a vector of NaN": ("deep.vectors.invalid", nan_vector, restore, "reindex"),
    "a short vector": ("deep.vectors.invalid", short_vector, restore, "reindex"),
    "a vector that is no unit vector": ("deep.vectors.invalid", long_vector, restore, "reindex"),
    "a vector of another model": ("deep.vectors.model", older_model, restore, "reindex --namespace team"),
    "a memory without vector": ("deep.vectors.missing", no_vector, restore, "a server and a sidecar"),
    "an orphaned chunk": ("deep.orphans", orphan, no_orphan, "UNLINK"),
    "a lost chunk": ("deep.pieces", lost_chunk, restored_chunk, "update_memory"),
    "records in no index": ("deep.unindexed", unindexed, restore_index, "reindex --namespace team"),
}


@pytest.mark.parametrize("what", DEEP_FAULTS)
async def test_deep_check_reports_a_record_fault(team: Deployment, what: str) -> None:
    fault, plant, repair, remedy = DEEP_FAULTS[what]
    await command(team, "COPY", team.keys.memory(team.memory), "kept", "REPLACE")
    await plant(team)
    try:
        shallow, report = await team.examine(), await team.examine(deep=True)
    finally:
        await repair(team)
        await team.rebuild()
    found = [finding for finding in report.faults if finding.id.startswith("deep.")]
    assert [finding.id for finding in found] == [fault], report.text()
    assert remedy in found[0].remedy
    named = team.long if "chunk" in what else team.memory
    assert named in found[0].seen or what == "records in no index"
    assert {finding.id for finding in shallow.faults} <= {"index.failures"}
    assert (await team.examine(deep=True)).healthy


async def test_deep_check_reports_low_recall(empty: Deployment) -> None:
    poor = {**MODEL, "hnsw": {"m": 4, "ef_construction": 16, "ef_runtime": 10}}
    await empty.announce()
    await ensure_namespace(empty.client, "poor", Settings.load(vector_store=poor).vector_store)
    keys, random = Keys("poor"), np.random.default_rng(1)
    vectors = random.standard_normal((3000, 16)).astype(np.float32)
    pipe = empty.client.pipeline(transaction=False)
    for number, vector in enumerate(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)):
        fields = {
            "content": "some",
            "model": "vec16_fake",
            "part": "head",
            "vec16_fake": to_stored(vector, Model("fake", 16)),
        }
        pipe.hset(keys.memory(f"m{number}"), mapping=fields)
    await pipe.execute()
    try:
        report = await empty.examine(deep=True, vector_store=poor)
    finally:
        await empty.client.flushall()
    assert only_fault(report)[0] == "deep.recall"
    assert "ef_construction" in only_fault(report)[1]
    assert not await empty.client.exists(NAMESPACES)
