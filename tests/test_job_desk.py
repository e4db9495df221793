"""A sidecar's jobs between their stream and their commit, step by step: taken, held, taken over, given back, buried."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import embedder_fixtures
import numpy as np
import pytest
from embedder_fixtures import Team

from memory_core import keys
from memory_core.keyring import Secret
from memory_core.sealed_records import Place, seal_job
from memory_core.sealing import Key, Transports
from memory_core.streams import CLEAR
from memory_core.vectors import Matrix
from memory_embedder.engines.encoder import TextKind, Tokens
from memory_embedder.engines.fake import FakeEncoder
from memory_embedder.streams import groups
from memory_embedder.streams.backlog import MAX_DELIVERIES, SUSPECT_DELIVERIES, HeldJobs, TokenisedJob
from memory_embedder.streams.jobs import COMMIT_AT_ONCE, JobConsumer
from memory_embedder.streams.outbox import Action, Outbox
from memory_embedder.streams.throughput import Throughput

server, client, team = embedder_fixtures.server, embedder_fixtures.client, embedder_fixtures.team
LEASE_MS = 60_000
ME, OTHER = "me", "other"
BAD_WORD = "unspeakable"


class Outgoing(Outbox):
    """Keeps what is to be sent until the test sends it."""

    def __init__(self) -> None:
        super().__init__("test", asyncio.Event())
        self.actions: list[Action] = []

    def put(self, action: Action) -> None:
        self.actions.append(action)

    async def send(self) -> int:
        """Do all that was put; give how many it was."""
        actions, self.actions = self.actions, []
        for action in actions:
            await action()
        return len(actions)


class PickyEncoder(FakeEncoder):
    """Its tokenizer fails on a word."""

    def tokenise(self, texts: list[str], kind: TextKind = "passage") -> Tokens:
        if any(BAD_WORD in text for text in texts):
            raise ValueError("cannot be split")
        return super().tokenise(texts, kind)


class Desk:
    """The desk of a sidecar named ME, and what a test does and sees around it."""

    def __init__(self, team: Team, transports: Transports = CLEAR) -> None:
        self.team, self.client, self.names = team, team.client, team.names
        self.encoder = PickyEncoder()
        self.held_jobs, self.out, self.work_arrived = HeldJobs(Throughput()), Outgoing(), asyncio.Event()
        self.jobs = JobConsumer(self.client, self.encoder, self.held_jobs, self.out, ME, self.work_arrived, transports)

    async def queued(self, fields: Mapping[str, Any]) -> bytes:
        """Add any job to the stream."""
        return await self.client.xadd(self.team.jobs, dict(fields))

    async def delivered_before(self, deliveries: int, *, idle_ms: int = 2 * LEASE_MS) -> None:
        """Have all jobs be OTHER's since so long, delivered so often."""
        await self.client.xreadgroup(keys.GROUP, OTHER, {self.team.jobs: ">"})
        await self.touch(OTHER, list(await self.pending()), idle=idle_ms, retrycount=deliveries)

    async def touch(self, who: str, entries: list[bytes], **state: Any) -> None:
        """Set whose jobs are, and what `state` says of their deliveries."""
        await self.client.xclaim(self.team.jobs, keys.GROUP, who, 0, entries, justid=True, **state)

    async def pending(self) -> dict[bytes, tuple[str, int, int]]:
        """Whose each unacknowledged job is, its idle time in milliseconds, and its deliveries."""
        found = await self.client.xpending_range(self.team.jobs, keys.GROUP, "-", "+", 10_000)
        return {
            item["message_id"]: (item["consumer"].decode(), item["time_since_delivered"], item["times_delivered"])
            for item in found
        }

    async def buried(self) -> list[dict[bytes, bytes]]:
        """What was set aside."""
        return [fields for _, fields in await self.client.xrange(self.names.dead_jobs)]

    def leave_room(self, texts: int) -> None:
        """Hold so much of another namespace that no more than these can be taken."""
        while self.held_jobs.room() > texts:
            self.held_jobs.add("elsewhere", b"%d-1" % len(self.held_jobs), 8, 1)

    def works(self) -> list[TokenisedJob]:
        """All that waits for inference."""
        works: list[TokenisedJob] = []
        while picked := self.jobs.backlog.pick(1 << 20):
            works += picked
        return works

    def vectors(self, works: list[TokenisedJob]) -> list[Matrix]:
        """Their vectors."""
        return list(self.encoder.infer(Tokens(tuple(work.row for work in works))))


@pytest.fixture
def desk(team: Team) -> Desk:
    """A desk without keys."""
    return Desk(team)


def job(**other: Any) -> dict[str, Any]:
    """Fields of a job for a memory that does not exist."""
    whole = {"v": 1, "id": "m", "rev": 1, "hash": "h", "piece": 0, "model": "fake", "seal": "", "body": "a text"}
    return whole | other


async def test_jobs_are_read_held_and_committed(desk: Desk) -> None:
    ids = await desk.team.store_many(["one text", "another longer text"])
    assert await desk.jobs.read(desk.names) is False
    assert desk.work_arrived.is_set()
    assert (len(desk.held_jobs), desk.held_jobs.tokens) == (2, 4 + 5)
    works = desk.works()
    assert [(work.job.memory_id, work.deliveries, len(work.row)) for work in works] == [(ids[0], 1, 4), (ids[1], 1, 5)]
    vectors = desk.vectors(works)
    desk.jobs.commit(works, vectors)
    assert await desk.out.send() == 1
    for memory_id, vector in zip(ids, vectors, strict=True):
        found = await desk.team.vector(memory_id)
        assert found is not None
        assert np.array_equal(found, vector)
    assert (len(desk.held_jobs), desk.held_jobs.tokens) == (0, 0)
    assert desk.jobs.has_room.is_set()
    assert await desk.client.xlen(desk.team.jobs) == 0
    assert desk.jobs.verdicts == {"ok": 2, "gone": 0, "stale": 0, "bad_vector": 0, "buried": 0}


async def test_more_is_read_only_as_there_is_room(desk: Desk) -> None:
    await desk.team.store_many([f"text {number}" for number in range(6)])
    hold = Throughput().hold
    desk.held_jobs.add("elsewhere", b"1-0", hold, 1)
    assert await desk.jobs.read(desk.names) is True
    assert not desk.works()
    desk.held_jobs.drop("elsewhere", b"1-0")
    desk.leave_room(4)
    assert await desk.jobs.read(desk.names) is True
    assert len(desk.works()) == 4


async def test_commits_are_of_few_vectors_and_of_one_namespace_each(desk: Desk) -> None:
    other = await Team(desk.client, "fake", 16, "other").open()
    ids = await desk.team.store_many([f"text {number}" for number in range(COMMIT_AT_ONCE + 1)])
    there = await other.store("a text of others")
    await desk.jobs.read(desk.names)
    await desk.jobs.read(other.names)
    works = desk.works()
    desk.jobs.commit(works, desk.vectors(works))
    assert await desk.out.send() == 3
    assert await desk.team.count_vectors(ids) == len(ids)
    assert await other.count_vectors([there]) == 1


async def test_what_is_no_vector_is_not_written_and_its_job_buried(desk: Desk) -> None:
    good, bad = await desk.team.store_many(["a good one", "a bad one"])
    await desk.jobs.read(desk.names)
    works = desk.works()
    vectors = desk.vectors(works)
    desk.jobs.commit(works, [vectors[0], vectors[1] * 2])
    await desk.out.send()
    assert await desk.team.vector(good) is not None
    assert await desk.team.vector(bad) is None
    assert await desk.buried() == [{b"id": bad.encode(), b"rev": b"1", b"error": b"the vector was refused"}]
    assert (await desk.client.xlen(desk.team.jobs), len(desk.held_jobs)) == (0, 0)
    assert (desk.jobs.verdicts["bad_vector"], desk.jobs.verdicts["buried"]) == (1, 1)


async def test_a_job_of_no_known_version_is_buried_at_once_and_its_neighbours_are_taken(desk: Desk) -> None:
    await desk.queued(job(v=9))
    await desk.queued(job())
    await desk.jobs.read(desk.names)
    assert len(desk.works()) == 1
    assert await desk.buried() == [{b"id": b"", b"rev": b"0", b"error": b"not a job of a known version"}]
    assert await desk.client.xlen(desk.team.jobs) == 1


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"model": "another"}, b"needs another model than fake"),
        ({"body": b"\xff"}, b"is not UTF-8"),
        ({"body": BAD_WORD}, b"ValueError"),
    ],
)
async def test_a_job_that_cannot_be_embedded_is_left_for_later_and_buried_at_last(
    desk: Desk, wrong: dict[str, Any], reason: bytes
) -> None:
    entry = await desk.queued(job(**wrong))
    await desk.delivered_before(MAX_DELIVERIES - 2)
    await desk.jobs.reclaim(desk.names, LEASE_MS)
    assert (await desk.out.send(), await desk.buried()) == (0, [])
    assert (await desk.pending())[entry][::2] == (ME, MAX_DELIVERIES - 1)
    await desk.delivered_before(MAX_DELIVERIES - 1)
    await desk.jobs.reclaim(desk.names, LEASE_MS)
    assert await desk.out.send() == 1
    assert await desk.buried() == [{b"id": b"m", b"rev": b"1", b"error": reason}]
    assert (await desk.pending(), desk.works(), len(desk.held_jobs)) == ({}, [], 0)


async def test_a_job_delivered_too_often_is_buried_untried(desk: Desk) -> None:
    await desk.queued(job())
    await desk.delivered_before(MAX_DELIVERIES)
    await desk.jobs.reclaim(desk.names, LEASE_MS)
    assert await desk.out.send() == 1
    assert (await desk.buried())[0][b"error"] == b"delivered 5 times without a result"
    assert desk.works() == []


async def test_a_job_that_fails_is_buried_at_its_last_delivery_and_not_before(desk: Desk) -> None:
    entry = await desk.queued(job())
    for deliveries in (MAX_DELIVERIES - 1, MAX_DELIVERIES):
        await desk.delivered_before(deliveries - 1)
        await desk.jobs.reclaim(desk.names, LEASE_MS)
        assert (entry in await desk.pending(), await desk.buried()) == (True, [])
        (work,) = desk.works()
        assert (work.deliveries, len(desk.held_jobs)) == (deliveries, 1)
        desk.jobs.fail(work, "its engine failed")
        await desk.out.send()
        assert len(desk.held_jobs) == 0
    assert [said[b"error"] for said in await desk.buried()] == [b"its engine failed"]
    assert not await desk.pending()


@pytest.mark.parametrize("others", [["one text"], ["one text", "two texts"]])
async def test_a_text_that_cannot_be_split_takes_no_other_along(desk: Desk, others: list[str]) -> None:
    await desk.team.store_many([f"an {BAD_WORD} text", *others])
    await desk.jobs.read(desk.names)
    assert [work.job.body.decode() for work in desk.works()] == others
    assert (len(desk.held_jobs), desk.held_jobs.tokens) == (len(others), 4 * len(others))


async def test_only_jobs_untouched_for_a_lease_are_taken_over(desk: Desk) -> None:
    await desk.queued(job(body="fresh"))
    await desk.delivered_before(1, idle_ms=LEASE_MS // 2)
    dead = await desk.queued(job(body="of the dead"))
    await desk.client.xreadgroup(keys.GROUP, OTHER, {desk.team.jobs: ">"})
    await desk.touch(OTHER, [dead], idle=2 * LEASE_MS)
    assert await desk.jobs.reclaim(desk.names, LEASE_MS) is False
    assert [(work.job.body, work.deliveries) for work in desk.works()] == [(b"of the dead", 2)]
    assert [who for who, _, _ in (await desk.pending()).values()] == [OTHER, ME]


async def test_what_is_held_here_is_not_taken_over_again(desk: Desk) -> None:
    await desk.team.store_many(["one text", "another text"])
    await desk.jobs.read(desk.names)
    assert len(desk.works()) == 2
    await desk.touch(ME, list(await desk.pending()), idle=2 * LEASE_MS)
    assert await desk.jobs.reclaim(desk.names, LEASE_MS) is False
    assert desk.works() == []


async def test_suspects_are_taken_over_one_by_one_beside_others(desk: Desk) -> None:
    entries = [await desk.queued(job(body=f"text {number}")) for number in range(4)]
    await desk.delivered_before(SUSPECT_DELIVERIES - 2)
    await desk.touch(OTHER, entries[1:3], idle=2 * LEASE_MS, retrycount=SUSPECT_DELIVERIES - 1)
    assert await desk.jobs.reclaim(desk.names, LEASE_MS) is True
    assert await desk.jobs.reclaim(desk.names, LEASE_MS) is True
    assert desk.jobs.backlog.has_suspects
    taken = desk.works()
    assert [(work.job.entry.encode(), work.is_suspect) for work in taken] == [
        (entries[1], True), (entries[0], False), (entries[3], False)
    ]  # fmt: skip
    assert await desk.jobs.reclaim(desk.names, LEASE_MS) is False
    assert [work.job.entry.encode() for work in desk.works()] == [entries[2]]


async def test_what_is_taken_over_is_bounded_by_room(desk: Desk) -> None:
    for number in range(6):
        await desk.queued(job(body=f"text {number}"))
    await desk.delivered_before(1)
    full = Throughput().hold
    desk.held_jobs.add("elsewhere", b"1-0", full, 1)
    assert await desk.jobs.reclaim(desk.names, LEASE_MS) is False
    desk.held_jobs.drop("elsewhere", b"1-0")
    desk.leave_room(4)
    assert await desk.jobs.reclaim(desk.names, LEASE_MS) is True
    assert len(desk.works()) == 4


async def test_what_redis_calls_fresh_at_two_looks_is_taken_over(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    stray, aged = await desk.queued(job()), await desk.queued(job())
    await desk.delivered_before(1)
    fresh = [stray]

    async def zero_idle_entries(_client: object, stream: str, *, count: int) -> list[groups.PendingEntry]:
        assert (stream, count > len(fresh)) == (desk.team.jobs, True)
        return [groups.PendingEntry(entry, 1) for entry in fresh]

    monkeypatch.setattr(groups, "zero_idle_entries", zero_idle_entries)
    await desk.jobs.reclaim_skewed(desk.names)
    assert (await desk.pending())[stray][0] == OTHER
    await desk.jobs.reclaim_skewed(desk.names)
    assert [(work.job.entry.encode(), work.deliveries) for work in desk.works()] == [(stray, 2)]
    fresh.append(aged)
    await desk.jobs.reclaim_skewed(desk.names)
    assert (await desk.pending())[aged][0] == OTHER
    await desk.jobs.reclaim_skewed(desk.names)
    assert [work.job.entry.encode() for work in desk.works()] == [aged]


async def test_what_is_held_for_long_is_renewed_once(desk: Desk) -> None:
    await desk.team.store("a text")
    await desk.jobs.read(desk.names)
    (entry,) = await desk.pending()
    await desk.touch(ME, [entry], idle=LEASE_MS)
    await desk.jobs.renew(3600)
    assert (await desk.pending())[entry][1] >= LEASE_MS
    await desk.jobs.renew(0)
    who, idle, deliveries = (await desk.pending())[entry]
    assert (who, deliveries) == (ME, 1)
    assert idle < LEASE_MS
    assert not desk.held_jobs.older_than(60)


async def test_what_is_handed_back_was_never_delivered_here(desk: Desk) -> None:
    old = await desk.queued(job())
    await desk.delivered_before(1)
    await desk.jobs.reclaim(desk.names, LEASE_MS)
    new = await desk.queued(job())
    await desk.jobs.read(desk.names)
    await desk.jobs.release()
    pending = await desk.pending()
    assert {entry: deliveries for entry, (_, _, deliveries) in pending.items()} == {old: 1, new: 0}
    assert all(idle > LEASE_MS for _, idle, _ in pending.values())


class Sealed:
    """A transport key, and jobs under it."""

    def __init__(self, namespace: str) -> None:
        secret = Secret(bytes(range(32)))
        self.transports = Transports([secret])
        self.place = Place(namespace, "o", "m", 0, 1, "h")
        self._lock = self.place.lock(Key.of(secret, "data"), "vector")

    def job(self, **other: Any) -> dict[str, Any]:
        """Fields of a job with a sealed text."""
        return job(**seal_job(self.transports, self.place, "a secret", self._lock)) | other


async def test_a_sealed_job_is_left_to_sidecars_with_its_key(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    sealed = Sealed(desk.names.namespace)
    first, clear = await desk.queued(sealed.job()), await desk.queued(job())
    await desk.jobs.read(desk.names)
    assert [work.job.entry.encode() for work in desk.works()] == [clear]
    _, idle, deliveries = (await desk.pending())[first]
    assert (idle > LEASE_MS, deliveries) == (True, 0)
    assert await desk.jobs.reclaim(desk.names, LEASE_MS) is False
    second = await desk.queued(sealed.job())
    await desk.jobs.read(desk.names)
    assert (await desk.pending())[second][2] == 0
    assert (await desk.out.send(), await desk.buried(), len(desk.held_jobs)) == (0, [], 1)
    assert caplog.text.count("MEMORY_TRANSPORT_KEY") == 1


async def test_a_sealed_job_is_opened_by_its_key_alone(team: Team) -> None:
    sealed = Sealed(team.names.namespace)
    desk = Desk(team, sealed.transports)
    await desk.queued(sealed.job())
    moved = await desk.queued(sealed.job(rev=2))
    await desk.delivered_before(1)
    await desk.touch(OTHER, [moved], idle=2 * LEASE_MS, retrycount=MAX_DELIVERIES - 1)
    await desk.jobs.reclaim(desk.names, LEASE_MS)
    assert await desk.out.send() == 1
    assert [said[b"error"] for said in await desk.buried()] == [b"was altered, or belongs to another job"]
    (work,) = desk.works()
    assert work.lock is not None
    assert len(work.row) == 4


async def test_a_sealed_vector_is_committed_sealed(team: Team) -> None:
    sealed = Sealed(team.names.namespace)
    desk = Desk(team, sealed.transports)
    memory = desk.names.memory("m")
    await desk.client.hset(memory, mapping={"rev": 1, "hash": "h", "sealed": "x"})
    await desk.queued(sealed.job())
    await desk.jobs.read(desk.names)
    works = desk.works()
    desk.jobs.commit(works, desk.vectors(works))
    await desk.out.send()
    assert desk.jobs.verdicts["ok"] == 1
    written = await desk.client.hgetall(memory)
    assert team.vector_field.encode() not in written
    assert len(written[f"sealed_{team.vector_field}".encode()]) > 4 * 16
