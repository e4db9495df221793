"""JobConsumer step by step: jobs are read, held, reclaimed, released, committed and buried."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import embedder_fixtures
from support.embedder_fixtures import Team
from support.job_harness import BAD_WORD, LEASE_MS, ME, OTHER, Harness, job_fields

from memory_core.crypto.keyring import Secret
from memory_core.crypto.sealed_memory import Binding
from memory_core.crypto.sealing import Key, Transports
from memory_core.records import keys
from memory_core.store.sealed_jobs import seal_job
from memory_embedder.streams import groups
from memory_embedder.streams.backlog import MAX_DELIVERIES, SUSPECT_DELIVERIES
from memory_embedder.streams.jobs import COMMIT_AT_ONCE
from memory_embedder.streams.throughput import Throughput

server, client, team = embedder_fixtures.server, embedder_fixtures.client, embedder_fixtures.team


@pytest.fixture
def harness(team: Team) -> Harness:
    """A harness without transport keys."""
    return Harness(team)


async def test_jobs_are_read_held_and_committed(harness: Harness) -> None:
    ids = await harness.team.store_many(["one text", "another longer text"])
    assert await harness.jobs.read(harness.names) is False
    assert harness.work_arrived.is_set()
    assert (len(harness.held_jobs), harness.held_jobs.tokens) == (2, 4 + 5)
    picked = harness.pick_all()
    assert [(taken.job.memory_id, taken.deliveries, len(taken.row)) for taken in picked] == [
        (ids[0], 1, 4),
        (ids[1], 1, 5),
    ]
    vectors = harness.vectors(picked)
    harness.jobs.commit(picked, vectors)
    assert await harness.outbox.send() == 1
    for memory_id, vector in zip(ids, vectors, strict=True):
        found = await harness.team.vector(memory_id)
        assert found is not None
        assert np.array_equal(found, vector.astype(np.float16))
    assert (len(harness.held_jobs), harness.held_jobs.tokens) == (0, 0)
    assert harness.jobs.has_room.is_set()
    assert await harness.client.xlen(harness.team.jobs) == 0
    assert harness.jobs.verdicts == {"ok": 2, "gone": 0, "stale": 0, "bad_vector": 0, "buried": 0}


async def test_jobs_are_read_only_while_there_is_room(harness: Harness) -> None:
    await harness.team.store_many([f"text {number}" for number in range(6)])
    hold = Throughput().hold
    harness.held_jobs.add("elsewhere", b"1-0", hold, 1)
    assert await harness.jobs.read(harness.names) is True
    assert not harness.pick_all()
    harness.held_jobs.drop("elsewhere", b"1-0")
    harness.fill_up_to(4)
    assert await harness.jobs.read(harness.names) is True
    assert len(harness.pick_all()) == 4


async def test_commit_has_few_vectors_of_one_namespace(harness: Harness) -> None:
    other = await Team(harness.client, "fake", 16, "other").open()
    ids = await harness.team.store_many([f"text {number}" for number in range(COMMIT_AT_ONCE + 1)])
    there = await other.store("a text of others")
    await harness.jobs.read(harness.names)
    await harness.jobs.read(other.names)
    picked = harness.pick_all()
    harness.jobs.commit(picked, harness.vectors(picked))
    assert await harness.outbox.send() == 3
    assert await harness.team.count_vectors(ids) == len(ids)
    assert await other.count_vectors([there]) == 1


async def test_job_of_an_invalid_vector_is_buried(harness: Harness) -> None:
    good, bad = await harness.team.store_many(["a good one", "a bad one"])
    await harness.jobs.read(harness.names)
    picked = harness.pick_all()
    vectors = harness.vectors(picked)
    harness.jobs.commit(picked, [vectors[0], vectors[1] * 2])
    await harness.outbox.send()
    assert await harness.team.vector(good) is not None
    assert await harness.team.vector(bad) is None
    assert await harness.dead_letters() == [{b"id": bad.encode(), b"rev": b"1", b"error": b"the vector was refused"}]
    assert (await harness.client.xlen(harness.team.jobs), len(harness.held_jobs)) == (0, 0)
    assert (harness.jobs.verdicts["bad_vector"], harness.jobs.verdicts["buried"]) == (1, 1)


async def test_job_of_unknown_version_is_buried_and_others_are_read(harness: Harness) -> None:
    await harness.add_job(job_fields(v=9))
    await harness.add_job(job_fields())
    await harness.jobs.read(harness.names)
    assert len(harness.pick_all()) == 1
    assert await harness.dead_letters() == [{b"id": b"", b"rev": b"0", b"error": b"not a job of a known version"}]
    assert await harness.client.xlen(harness.team.jobs) == 1


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"model": "another"}, b"needs another model than fake"),
        ({"body": b"\xff"}, b"is not UTF-8"),
        ({"body": BAD_WORD}, b"ValueError"),
    ],
)
async def test_job_that_cannot_be_embedded_is_buried_at_last_delivery(
    harness: Harness, wrong: dict[str, Any], reason: bytes
) -> None:
    entry = await harness.add_job(job_fields(**wrong))
    await harness.deliver_to_other(MAX_DELIVERIES - 2)
    await harness.jobs.reclaim(harness.names, LEASE_MS)
    assert (await harness.outbox.send(), await harness.dead_letters()) == (0, [])
    assert (await harness.pending())[entry][::2] == (ME, MAX_DELIVERIES - 1)
    await harness.deliver_to_other(MAX_DELIVERIES - 1)
    await harness.jobs.reclaim(harness.names, LEASE_MS)
    assert await harness.outbox.send() == 1
    assert await harness.dead_letters() == [{b"id": b"m", b"rev": b"1", b"error": reason}]
    assert (await harness.pending(), harness.pick_all(), len(harness.held_jobs)) == ({}, [], 0)


@pytest.mark.parametrize(
    ("text", "wrong", "state"),
    [
        (BAD_WORD, {}, b"failed:vec16_fake"),
        ("fine", {"body": "\xff".encode("latin-1")}, b"none:vec16_fake"),
        ("fine", {"model": "another"}, b"none:vec16_fake"),
    ],
    ids=["bad text", "bad body", "other model"],
)
async def test_only_a_text_that_failed_is_marked_when_its_job_is_buried(
    harness: Harness, text: str, wrong: dict[str, Any], state: bytes
) -> None:
    memory_id = await harness.team.store(text)
    [(entry, fields)] = await harness.client.xrange(harness.team.jobs)
    await harness.client.xdel(harness.team.jobs, entry)
    await harness.add_job({name.decode(): value for name, value in fields.items()} | wrong)
    await harness.deliver_to_other(MAX_DELIVERIES - 1)
    await harness.jobs.reclaim(harness.names, LEASE_MS)
    assert await harness.outbox.send() == 1
    assert await harness.client.hget(harness.names.memory(memory_id), "model") == state


async def test_job_delivered_too_often_is_buried_without_inference(harness: Harness) -> None:
    await harness.add_job(job_fields())
    await harness.deliver_to_other(MAX_DELIVERIES)
    await harness.jobs.reclaim(harness.names, LEASE_MS)
    assert await harness.outbox.send() == 1
    assert (await harness.dead_letters())[0][b"error"] == b"delivered 5 times without a result"
    assert harness.pick_all() == []


async def test_failing_job_is_buried_at_its_last_delivery(harness: Harness) -> None:
    entry = await harness.add_job(job_fields())
    for deliveries in (MAX_DELIVERIES - 1, MAX_DELIVERIES):
        await harness.deliver_to_other(deliveries - 1)
        await harness.jobs.reclaim(harness.names, LEASE_MS)
        assert (entry in await harness.pending(), await harness.dead_letters()) == (True, [])
        (taken,) = harness.pick_all()
        assert (taken.deliveries, len(harness.held_jobs)) == (deliveries, 1)
        harness.jobs.fail(taken, "its engine failed")
        await harness.outbox.send()
        assert len(harness.held_jobs) == 0
    assert [letter[b"error"] for letter in await harness.dead_letters()] == [b"its engine failed"]
    assert not await harness.pending()


@pytest.mark.parametrize("others", [["one text"], ["one text", "two texts"]])
async def test_text_that_cannot_be_tokenised_does_not_fail_others(harness: Harness, others: list[str]) -> None:
    await harness.team.store_many([f"an {BAD_WORD} text", *others])
    await harness.jobs.read(harness.names)
    assert [taken.job.body.decode() for taken in harness.pick_all()] == others
    assert (len(harness.held_jobs), harness.held_jobs.tokens) == (len(others), 4 * len(others))


async def test_only_jobs_idle_for_a_lease_are_reclaimed(harness: Harness) -> None:
    await harness.add_job(job_fields(body="fresh"))
    await harness.deliver_to_other(1, idle_ms=LEASE_MS // 2)
    dead = await harness.add_job(job_fields(body="of the dead"))
    await harness.client.xreadgroup(keys.GROUP, OTHER, {harness.team.jobs: ">"})
    await harness.touch(OTHER, [dead], idle=2 * LEASE_MS)
    assert await harness.jobs.reclaim(harness.names, LEASE_MS) is False
    assert [(taken.job.body, taken.deliveries) for taken in harness.pick_all()] == [(b"of the dead", 2)]
    assert [who for who, _, _ in (await harness.pending()).values()] == [OTHER, ME]


async def test_held_job_is_not_reclaimed_again(harness: Harness) -> None:
    await harness.team.store_many(["one text", "another text"])
    await harness.jobs.read(harness.names)
    assert len(harness.pick_all()) == 2
    await harness.touch(ME, list(await harness.pending()), idle=2 * LEASE_MS)
    assert await harness.jobs.reclaim(harness.names, LEASE_MS) is False
    assert harness.pick_all() == []


async def test_suspect_jobs_are_reclaimed_one_at_a_time(harness: Harness) -> None:
    entries = [await harness.add_job(job_fields(body=f"text {number}")) for number in range(4)]
    await harness.deliver_to_other(SUSPECT_DELIVERIES - 2)
    await harness.touch(OTHER, entries[1:3], idle=2 * LEASE_MS, retrycount=SUSPECT_DELIVERIES - 1)
    assert await harness.jobs.reclaim(harness.names, LEASE_MS) is True
    assert await harness.jobs.reclaim(harness.names, LEASE_MS) is True
    assert harness.jobs.backlog.has_suspects
    taken = harness.pick_all()
    assert [(taken.job.entry.encode(), taken.is_suspect) for taken in taken] == [
        (entries[1], True), (entries[0], False), (entries[3], False)
    ]  # fmt: skip
    assert await harness.jobs.reclaim(harness.names, LEASE_MS) is False
    assert [taken.job.entry.encode() for taken in harness.pick_all()] == [entries[2]]


async def test_reclaimed_jobs_are_limited_by_room(harness: Harness) -> None:
    for number in range(6):
        await harness.add_job(job_fields(body=f"text {number}"))
    await harness.deliver_to_other(1)
    full = Throughput().hold
    harness.held_jobs.add("elsewhere", b"1-0", full, 1)
    assert await harness.jobs.reclaim(harness.names, LEASE_MS) is False
    harness.held_jobs.drop("elsewhere", b"1-0")
    harness.fill_up_to(4)
    assert await harness.jobs.reclaim(harness.names, LEASE_MS) is True
    assert len(harness.pick_all()) == 4


async def test_pending_job_with_no_idle_time_at_two_scans_is_reclaimed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray, aged = await harness.add_job(job_fields()), await harness.add_job(job_fields())
    await harness.deliver_to_other(1)
    fresh = [stray]

    async def zero_idle_entries(_client: object, stream: str, *, count: int) -> list[groups.PendingEntry]:
        assert (stream, count > len(fresh)) == (harness.team.jobs, True)
        return [groups.PendingEntry(entry, 1) for entry in fresh]

    monkeypatch.setattr(groups, "zero_idle_entries", zero_idle_entries)
    await harness.jobs.reclaim_skewed(harness.names)
    assert (await harness.pending())[stray][0] == OTHER
    await harness.jobs.reclaim_skewed(harness.names)
    assert [(taken.job.entry.encode(), taken.deliveries) for taken in harness.pick_all()] == [(stray, 2)]
    fresh.append(aged)
    await harness.jobs.reclaim_skewed(harness.names)
    assert (await harness.pending())[aged][0] == OTHER
    await harness.jobs.reclaim_skewed(harness.names)
    assert [taken.job.entry.encode() for taken in harness.pick_all()] == [aged]


async def test_held_job_is_renewed_once_it_is_old(harness: Harness) -> None:
    await harness.team.store("a text")
    await harness.jobs.read(harness.names)
    (entry,) = await harness.pending()
    await harness.touch(ME, [entry], idle=LEASE_MS)
    await harness.jobs.renew(3600)
    assert (await harness.pending())[entry][1] >= LEASE_MS
    await harness.jobs.renew(0)
    who, idle, deliveries = (await harness.pending())[entry]
    assert (who, deliveries) == (ME, 1)
    assert idle < LEASE_MS
    assert not harness.held_jobs.older_than(60)


async def test_released_jobs_keep_their_earlier_delivery_count(harness: Harness) -> None:
    old = await harness.add_job(job_fields())
    await harness.deliver_to_other(1)
    await harness.jobs.reclaim(harness.names, LEASE_MS)
    new = await harness.add_job(job_fields())
    await harness.jobs.read(harness.names)
    await harness.jobs.release()
    pending = await harness.pending()
    assert {entry: deliveries for entry, (_, _, deliveries) in pending.items()} == {old: 1, new: 0}
    assert all(idle > LEASE_MS for _, idle, _ in pending.values())


class Sealed:
    """A transport key, and jobs sealed under it."""

    def __init__(self, namespace: str) -> None:
        secret = Secret(bytes(range(32)))
        self.transports = Transports([secret])
        self.binding = Binding(namespace, "o", "m", 0, 1, "h")
        self._lock = self.binding.lock(Key.of(secret, "data"), "vector")

    def job_fields(self, **other: Any) -> dict[str, Any]:
        """Fields of a job with a sealed text."""
        return job_fields(**seal_job(self.transports, self.binding, "a secret", self._lock)) | other


async def test_sealed_job_is_left_to_sidecars_with_its_key(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    sealed = Sealed(harness.names.namespace)
    first, clear = await harness.add_job(sealed.job_fields()), await harness.add_job(job_fields())
    await harness.jobs.read(harness.names)
    assert [taken.job.entry.encode() for taken in harness.pick_all()] == [clear]
    _, idle, deliveries = (await harness.pending())[first]
    assert (idle > LEASE_MS, deliveries) == (True, 0)
    assert await harness.jobs.reclaim(harness.names, LEASE_MS) is False
    second = await harness.add_job(sealed.job_fields())
    await harness.jobs.read(harness.names)
    assert (await harness.pending())[second][2] == 0
    assert (await harness.outbox.send(), await harness.dead_letters(), len(harness.held_jobs)) == (0, [], 1)
    assert caplog.text.count("MEMORY_TRANSPORT_KEY") == 1


async def test_sealed_job_is_opened_only_by_its_key(team: Team) -> None:
    sealed = Sealed(team.names.namespace)
    harness = Harness(team, sealed.transports)
    await harness.add_job(sealed.job_fields())
    moved = await harness.add_job(sealed.job_fields(rev=2))
    await harness.deliver_to_other(1)
    await harness.touch(OTHER, [moved], idle=2 * LEASE_MS, retrycount=MAX_DELIVERIES - 1)
    await harness.jobs.reclaim(harness.names, LEASE_MS)
    assert await harness.outbox.send() == 1
    assert [letter[b"error"] for letter in await harness.dead_letters()] == [b"was altered, or belongs to another job"]
    (taken,) = harness.pick_all()
    assert taken.lock is not None
    assert len(taken.row) == 4


async def test_sealed_vector_is_committed_sealed(team: Team) -> None:
    sealed = Sealed(team.names.namespace)
    harness = Harness(team, sealed.transports)
    memory = harness.names.memory("m")
    await harness.client.hset(memory, mapping={"rev": 1, "hash": "h", "sealed": "x"})
    await harness.add_job(sealed.job_fields())
    await harness.jobs.read(harness.names)
    picked = harness.pick_all()
    harness.jobs.commit(picked, harness.vectors(picked))
    await harness.outbox.send()
    assert harness.jobs.verdicts["ok"] == 1
    written = await harness.client.hgetall(memory)
    assert team.vector_field.encode() not in written
    assert len(written[b"sealed_vec_fake"]) > 4 * 16
