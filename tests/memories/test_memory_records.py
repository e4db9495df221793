"""Records that the memory Functions write: owner ids, repeated stores, vectors, jobs per model, deletions."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from support import embedder_fixtures
from support.embedder_fixtures import Team

from memory_core.records.ids import new_id
from memory_core.records.keys import vector_field
from memory_core.records.memory import content_hash
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, to_bytes, to_stored
from memory_core.store import functions

server, client, team = embedder_fixtures.server, embedder_fixtures.client, embedder_fixtures.team
OTHER = "next"


def unit(*values: float) -> Matrix:
    """A vector of 16 dimensions that ends with these components."""
    return np.array([0.0] * (16 - len(values)) + list(values), dtype=np.float32)


async def with_other_model(team: Team, phase: str) -> None:
    """Set the namespace's second model and its phase."""
    fields = {"other_model": OTHER, "other_field": vector_field(OTHER), "other_dimension": 8, "phase": phase}
    await team.client.hset(team.names.meta, mapping=fields)


async def jobs_of(team: Team, model: str) -> list[str]:
    """Ids of the memories with jobs for a model."""
    return [fields[b"id"].decode() for _, fields in await team.client.xrange(team.names.jobs(model))]


async def test_agent_name_gets_one_owner_id(team: Team) -> None:
    late = new_id()
    held = [team.names.agent("alice"), team.names.owner(late)]
    answer = await functions.call(team.client, "rm1_owner", held, candidate=late, agent="alice")
    assert answer["owner"] == team.owner
    assert await team.client.hget(team.names.agent("alice"), "owners") == team.owner.encode()
    assert not await team.client.exists(team.names.owner(late))


async def test_repeated_store_returns_the_same_answer_and_audit_nonce(team: Team) -> None:
    memory_id = new_id()
    audit = {"who": "alice", "op": "store_memory", "ids": [memory_id], "nonce": "n1"}
    first = await team.call_store(memory_id, "a text", audit=audit)
    before = await team.client.hgetall(team.names.memory(memory_id))
    again = await team.call_store(memory_id, "a text", audit=audit)
    assert (first["audited"], again["audited"]) == ("n1", "n1")
    assert {name: again[name] for name in ("status", "id", "created_at", "expires_at", "seq")} == {
        name: first[name] for name in ("status", "id", "created_at", "expires_at", "seq")
    }
    assert await team.client.hgetall(team.names.memory(memory_id)) == before
    assert (await team.client.xlen(team.names.audit), len(await jobs_of(team, "fake"))) == (1, 1)
    unsigned = await team.call_store(new_id(), "another text")
    assert "audited" not in unsigned


async def test_idempotency_record_expires(team: Team) -> None:
    asked: dict[str, Any] = {"idempotency": {"payload": "p", "ttl": 60}}
    memory_id = new_id()
    await team.call_store(memory_id, "a text", **asked)
    assert (await team.call_store(new_id(), "a text", **asked))["id"] == memory_id
    assert 0 < await team.client.ttl(team.names.idempotency("x", "y")) <= 60


async def duplicate_index(team: Team) -> list[str]:
    """The keys that record which memories have the same content."""
    return sorted([key.decode() async for key in team.client.scan_iter(match=f"{team.names.same_prefix}*")])


def texts_of_one_bucket(number: int) -> list[str]:
    """Different texts whose content hashes share a bucket of the duplicate index."""
    texts = (f"text {count}" for count in itertools.count())
    return list(itertools.islice((text for text in texts if int(content_hash(text)[:3], 16) % 1024 == 7), number))


async def test_duplicate_index_lives_as_long_as_its_longest_memory(team: Team) -> None:
    short, lasting = new_id(), new_id()
    assert "duplicate_of" not in await team.call_store(short, "a text", ttl=100)
    (bucket,) = await duplicate_index(team)
    assert await team.client.ttl(bucket) == pytest.approx(100, abs=2)
    assert (await team.call_store(lasting, "a text", ttl=5000))["duplicate_of"] == short
    assert await team.client.ttl(bucket) == pytest.approx(5000, abs=2)
    endless = new_id()
    assert (await team.call_store(endless, "a text", ttl=None))["duplicate_of"] == lasting
    assert await team.client.ttl(bucket) == -1
    await team.delete(endless)
    assert await team.client.ttl(bucket) == pytest.approx(5000, abs=2)
    await team.delete(lasting)
    await team.delete(short)
    assert not await team.client.exists(bucket)


async def test_expired_memory_leaves_the_duplicate_index(team: Team) -> None:
    lasting = new_id()
    await team.call_store(lasting, "a text", ttl=5000)
    await team.call_store(new_id(), "a text", ttl=0.001)
    await asyncio.sleep(0.01)
    assert (await team.call_store(new_id(), "a text", ttl=10))["duplicate_of"] == lasting
    (bucket,) = await duplicate_index(team)
    assert await team.client.zcard(bucket) == 2


async def test_memory_in_its_last_second_is_a_duplicate(team: Team) -> None:
    first, (_, microseconds) = new_id(), await team.client.time()
    if microseconds > 500_000:
        await asyncio.sleep(1 - microseconds / 1e6)
    await team.call_store(first, "a text", ttl=0.4)
    assert (await team.call_store(new_id(), "a text", ttl=0.001))["duplicate_of"] == first


async def test_contents_share_buckets_of_the_duplicate_index(team: Team) -> None:
    first, second, third = texts_of_one_bucket(3)
    ids = [new_id() for _ in range(3)]
    await team.call_store(ids[0], first, ttl=100)
    assert "duplicate_of" not in await team.call_store(ids[1], second, ttl=None)
    assert "duplicate_of" not in await team.call_store(ids[2], third, ttl=5000)
    (bucket,) = await duplicate_index(team)
    assert await team.client.object("encoding", bucket) == b"listpack"
    assert (await team.call_store(new_id(), first, ttl=10))["duplicate_of"] == ids[0]
    await team.delete(ids[1])
    assert "duplicate_of" not in await team.call_store(new_id(), second, ttl=10)
    assert (await team.call_store(new_id(), third, ttl=10))["duplicate_of"] == ids[2]
    assert await team.client.ttl(bucket) == pytest.approx(5000, abs=2)


async def test_duplicate_index_of_an_earlier_version_is_used(team: Team) -> None:
    same = team.names.same(team.owner, content_hash("a text"))
    old = await team.store("a text")
    (bucket,) = await duplicate_index(team)
    await team.client.delete(bucket)
    await team.client.zadd(same, {old: math.inf})
    assert (await team.call_store(new_id(), "a text", ttl=10))["duplicate_of"] == old
    await team.call_update(old, "a text", "another", rev=1)
    assert not await team.client.exists(same)
    assert (await team.call_store(new_id(), "another", ttl=10))["duplicate_of"] == old
    await team.client.zadd(team.names.same(team.owner, content_hash("another")), {old: math.inf})
    await team.delete(old)
    assert not await team.client.exists(team.names.same(team.owner, content_hash("another")))


async def test_store_under_a_replaced_key_is_refused(team: Team) -> None:
    await team.client.hset(team.names.data_key(team.owner), "current", "2")
    assert (await team.call_store(new_id(), "a text", key="1"))["status"] == "key_changed"
    assert await team.client.xlen(team.names.audit) == 0
    assert (await team.call_store(new_id(), "a text", key="2"))["status"] == "stored"


async def test_stale_update_returns_the_current_revision(team: Team) -> None:
    memory_id = await team.store("a text")
    before = await team.client.hgetall(team.names.memory(memory_id))
    answer = await team.call_update(memory_id, "a text", "another", rev=7)
    assert (answer["status"], answer["rev"]) == ("stale", 1)
    assert await team.client.hgetall(team.names.memory(memory_id)) == before
    assert (await team.call_update(memory_id, "a text", "another"))["rev"] == 2


async def test_job_carries_the_trace_of_its_store(team: Team) -> None:
    await team.store("a text", trace="00-1-2-01")
    await team.store("another text")
    traces = [fields.get(b"trace") for _, fields in await team.client.xrange(team.jobs)]
    assert traces == [b"00-1-2-01", None]


async def test_read_counter_expires_with_its_memory(team: Team) -> None:
    names, living, gone = team.names, await team.store("a text"), new_id()
    held = [key for memory_id in (living, gone) for key in (names.memory(memory_id), names.use(memory_id))]
    for _ in range(2):
        await functions.call(team.client, "rm1_touch", held, counts=[2, 3], at="1000")
    assert await team.client.hgetall(names.use(living)) == {b"count": b"4", b"last": b"1000"}
    left = await team.client.pttl(names.memory(living))
    assert await team.client.pttl(names.use(living)) == pytest.approx(left, abs=1000)
    assert not await team.client.exists(names.use(gone))
    await team.client.persist(names.memory(living))
    await team.client.delete(names.use(living))
    await functions.call(team.client, "rm1_touch", held, counts=[1, 1], at="1000")
    assert await team.client.pttl(names.use(living)) == -1


@pytest.mark.parametrize(
    ("vector", "status"),
    [
        (unit(1), "stored"),
        (unit(0.6, 0.8), "stored"),
        (unit(0.6, 0, 0), "bad_vector"),
        (np.concatenate([unit(1), unit(0)]), "bad_vector"),
        (unit(1)[1:], "bad_vector"),
        (unit(np.nan), "bad_vector"),
        (unit(np.inf), "bad_vector"),
        (unit(0), "bad_vector"),
        (unit(1.004), "stored"),
        (unit(1.006), "bad_vector"),
        (unit(0.994), "bad_vector"),
    ],
)
@pytest.mark.parametrize("half", [False, True])
async def test_only_unit_vectors_are_stored(team: Team, vector: Matrix, status: str, half: bool) -> None:
    memory_id = new_id()
    given = {"model": "fake", "dimension": 16, "bytes": to_stored(vector, Model("fake", 16, half=half))}
    assert (await team.call_store(memory_id, "a text", vector=given))["status"] == status
    record = await team.client.hgetall(team.names.memory(memory_id))
    stored = to_stored(vector, Model("fake", 16)) if status == "stored" else None
    assert record.get(team.vector_field.encode()) == stored
    assert await jobs_of(team, "fake") == []


@pytest.mark.parametrize(
    ("phase", "asked", "state"),
    [
        ("building", ["fake", OTHER], "none:vec16_fake\x1fnone:vec16_next"),
        ("kept", ["fake"], "none:vec16_fake\x1fnone:vec16_next"),
        ("dropping", ["fake"], "none:vec16_fake"),
    ],
)
async def test_jobs_are_queued_for_every_active_model(team: Team, phase: str, asked: Sequence[str], state: str) -> None:
    await with_other_model(team, phase)
    memory_id = new_id()
    await team.call_store(memory_id, "a text")
    assert [model for model in ("fake", OTHER) if await jobs_of(team, model)] == asked
    assert await team.client.hget(team.names.memory(memory_id), "model") == state.encode()


async def test_vector_of_the_other_model_has_its_own_field(team: Team) -> None:
    await with_other_model(team, "building")
    memory_id = new_id()
    given = {"model": OTHER, "dimension": 8, "bytes": to_bytes(unit(1)[8:])}
    assert (await team.call_store(memory_id, "a text", vector=given))["status"] == "stored"
    record = await team.client.hgetall(team.names.memory(memory_id))
    assert record[vector_field(OTHER).encode()] == to_stored(unit(1)[8:], Model(OTHER, 8))
    assert record[b"model"] == b"none:vec16_fake\x1fvec16_next"
    assert (await jobs_of(team, "fake"), await jobs_of(team, OTHER)) == ([memory_id], [])


async def test_unknown_and_foreign_memories_are_not_deleted_or_audited(team: Team) -> None:
    memory_id = await team.store("a text")
    entries, events = await team.client.xlen(team.names.audit), await team.client.xlen(team.names.events)
    assert (await team.call_delete([new_id(), memory_id], owners=[new_id()]))["deleted"] == []
    assert await team.client.exists(team.names.memory(memory_id))
    assert await team.client.xlen(team.names.audit) == entries
    assert await team.client.xlen(team.names.events) == events
    assert (await team.call_delete([new_id(), memory_id]))["deleted"] == [memory_id]
    assert await team.client.xlen(team.names.audit) == entries + 1


async def test_purge_deletes_what_a_writer_wrote_since_a_time(team: Team) -> None:
    ids = [await team.store(f"text {number}") for number in range(4)]
    for number, memory_id in enumerate(ids):
        written: dict[str, Any] = {"writer": "mallory" if number else "alice", "updated_at": 1000 + number}
        await team.client.hset(team.names.memory(memory_id), mapping=written)
    answer = await team.call_delete(ids, writer="mallory", since=1002, owners=[])
    assert answer["deleted"] == ids[2:]
    assert [await team.client.exists(team.names.memory(memory_id)) for memory_id in ids] == [1, 1, 0, 0]
