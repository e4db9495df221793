"""The backlog, the held jobs, and the commands on consumer groups."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from redis import exceptions as redis_errors
from support import embedder_fixtures

from memory_core.records import keys
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_embedder.streams import backlog, groups
from memory_embedder.streams.backlog import MAX_TEXTS, Backlog, HeldJobs, TokenisedJob
from memory_embedder.streams.throughput import Throughput

server, client = embedder_fixtures.server, embedder_fixtures.client
STREAM, ME = "stream", "me"


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """The current time in seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the held jobs."""
    clock = Clock()
    monkeypatch.setattr(backlog, "time", clock)
    return clock


@pytest.fixture
def held_jobs() -> HeldJobs:
    """The held jobs of a sidecar with a limit of 1,000 tokens."""
    throughput = Throughput(tokens_per_second=500)
    assert throughput.hold == 1000
    return HeldJobs(throughput)


def job(length: int, deliveries: int = 1) -> TokenisedJob:
    return TokenisedJob(Keys("n"), None, np.zeros(length, dtype=np.int64), deliveries)  # type: ignore[arg-type]


def test_long_job_does_not_starve_and_suspect_is_picked_alone() -> None:
    waiting = Backlog()
    long, suspect = job(200), job(5, deliveries=3)
    waiting.add([long, *(job(5) for _ in range(100)), suspect])
    assert (len(waiting), waiting.has_suspects) == (102, True)
    assert waiting.pick(256) == [suspect]
    assert (len(waiting), waiting.has_suspects) == (101, False)
    assert waiting.pick(256) == [long]
    assert len(waiting.pick(256)) == 51
    assert len(waiting) == 49


def test_each_job_is_picked_once_in_order_within_its_batch() -> None:
    waiting = Backlog()
    jobs = [job(length) for length in (5, 9, 5, 9, 5, 90)]
    waiting.add(jobs)
    picked = []
    while some := waiting.pick(256):
        assert some == sorted(some, key=jobs.index)
        picked += some
    assert sorted(map(jobs.index, picked)) == list(range(6))


def test_job_is_suspect_from_its_third_delivery() -> None:
    assert [job(5, deliveries).is_suspect for deliveries in (1, 2, 3, 4)] == [False, False, True, True]


def test_held_tokens_are_the_sum_of_added_minus_dropped(held_jobs: HeldJobs) -> None:
    held_jobs.add("a", b"1-0", 30, 1)
    held_jobs.add("b", b"1-0", 12, 1)
    assert (len(held_jobs), held_jobs.tokens) == (2, 42)
    assert ("a", b"1-0") in held_jobs
    held_jobs.drop("a", b"1-0")
    held_jobs.drop("a", b"1-0")
    assert (len(held_jobs), held_jobs.tokens) == (1, 12)
    assert ("a", b"1-0") not in held_jobs


def test_there_is_room_below_three_quarters_of_the_limit(held_jobs: HeldJobs) -> None:
    held_jobs.add("a", b"1-0", 750, 1)
    assert held_jobs.has_room
    held_jobs.add("a", b"2-0", 1, 1)
    assert not held_jobs.has_room
    held_jobs.drop("a", b"1-0")
    assert held_jobs.has_room


def test_number_of_held_texts_is_limited(held_jobs: HeldJobs) -> None:
    for number in range(MAX_TEXTS * 3 // 4):
        held_jobs.add("a", b"%d-0" % number, 0, 1)
    assert held_jobs.has_room
    assert held_jobs.room() == MAX_TEXTS // 4
    held_jobs.add("b", b"0-0", 0, 1)
    assert not held_jobs.has_room
    for number in range(MAX_TEXTS):
        held_jobs.add("c", b"%d-0" % number, 0, 1)
    assert held_jobs.room() == 0


def test_room_is_counted_in_texts_of_average_length(held_jobs: HeldJobs) -> None:
    assert held_jobs.room() == 1000 // 32
    for number in range(2000):
        held_jobs.add("a", b"%d-0" % number, 100, 1)
        held_jobs.drop("a", b"%d-0" % number)
    assert held_jobs.room() in {9, 10}
    held_jobs.add("a", b"0-0", 500, 1)
    assert held_jobs.room() in {4, 5}
    held_jobs.add("a", b"1-0", 2000, 1)
    assert held_jobs.room() == 0


def test_old_entries_are_listed_until_renewed(held_jobs: HeldJobs, clock: Clock) -> None:
    held_jobs.add("a", b"1-0", 1, 1)
    clock.now += 4
    held_jobs.add("b", b"2-0", 1, 3)
    assert held_jobs.older_than(4.5) == {}
    assert held_jobs.older_than(4) == {"a": [b"1-0"]}
    clock.now += 1
    held_jobs.renew("a", [b"1-0", b"unknown"])
    assert held_jobs.older_than(1) == {"b": [b"2-0"]}
    assert held_jobs.older_than(0) == {"a": [b"1-0"], "b": [b"2-0"]}
    assert held_jobs.by_deliveries() == {("a", 1): [b"1-0"], ("b", 3): [b"2-0"]}
    assert len(held_jobs) == 2


async def test_group_is_created_once_at_the_start_of_the_stream(client: Client) -> None:
    assert await groups.make_group(client, STREAM, make_stream=False) is False
    assert not await client.exists(STREAM)
    assert await groups.make_group(client, STREAM, make_stream=True) is True
    assert await groups.make_group(client, STREAM, make_stream=False) is True
    await client.delete(STREAM)
    await client.xadd(STREAM, {"number": 1})
    assert [fields for _, fields in await groups.read(client, STREAM, ME, count=10)] == [{b"number": b"1"}]


async def test_missing_stream_reads_as_empty(client: Client) -> None:
    assert await groups.read(client, STREAM, ME, count=10) == []
    assert await groups.idle_entries(client, STREAM, idle_ms=0, count=10) == []
    assert await groups.zero_idle_entries(client, STREAM, count=10) == []
    assert await groups.claim(client, STREAM, ME, [], idle_ms=0) == []
    await groups.renew(client, STREAM, ME, [b"1-0"])
    await groups.release(client, STREAM, ME, [b"1-0"], 0)
    assert await groups.remove_dead_consumers(client, STREAM, idle_ms=0) == 0
    assert not await client.exists(STREAM)
    assert await groups.read(client, STREAM, ME, count=10, block_ms=1, make_stream=True) == []
    assert await client.exists(STREAM)


FAILING: dict[str, Callable[[Client], Awaitable[object]]] = {
    "make_group": lambda client: groups.make_group(client, STREAM, make_stream=True),
    "read": lambda client: groups.read(client, STREAM, ME, count=1),
    "idle_entries": lambda client: groups.idle_entries(client, STREAM, idle_ms=0, count=1),
    "claim": lambda client: groups.claim(client, STREAM, ME, [b"1-0"], idle_ms=0),
    "renew": lambda client: groups.renew(client, STREAM, ME, [b"1-0"]),
    "release": lambda client: groups.release(client, STREAM, ME, [b"1-0"], 0),
    "remove_dead_consumers": lambda client: groups.remove_dead_consumers(client, STREAM, idle_ms=0),
}


@pytest.mark.parametrize("call", FAILING.values(), ids=FAILING)
async def test_other_redis_errors_are_raised(client: Client, call: Callable[[Client], Awaitable[object]]) -> None:
    await client.set(STREAM, "no stream")
    with pytest.raises(redis_errors.ResponseError, match="WRONGTYPE"):
        await call(client)


async def test_idle_entries_are_claimed_by_one_consumer(client: Client) -> None:
    await groups.make_group(client, STREAM, make_stream=True)
    ids = [await client.xadd(STREAM, {"number": number}) for number in range(3)]
    assert len(await groups.read(client, STREAM, "dead", count=2)) == 2
    assert await groups.idle_entries(client, STREAM, idle_ms=60_000, count=10) == []
    await groups.release(client, STREAM, "dead", ids[:2], 4)
    found = await groups.idle_entries(client, STREAM, idle_ms=60_000, count=10)
    assert found == [groups.PendingEntry(entry, 4) for entry in ids[:2]]
    assert await groups.idle_entries(client, STREAM, idle_ms=60_000, count=1) == found[:1]
    assert await groups.zero_idle_entries(client, STREAM, count=10) == []
    await groups.renew(client, STREAM, ME, ids[:1])
    assert await groups.idle_entries(client, STREAM, idle_ms=60_000, count=10) == found[1:]
    claimed = await groups.claim(client, STREAM, ME, ids[:2], idle_ms=60_000)
    assert claimed == [(ids[1], {b"number": b"1"})]
    assert await groups.claim(client, STREAM, "late", ids[:2], idle_ms=60_000) == []


async def test_all_entries_are_renewed_in_several_commands(client: Client) -> None:
    await groups.make_group(client, STREAM, make_stream=True)
    ids = [await client.xadd(STREAM, {"number": number}) for number in range(1100)]
    await groups.read(client, STREAM, ME, count=2000)
    await groups.release(client, STREAM, ME, ids, 0)
    assert len(await groups.idle_entries(client, STREAM, idle_ms=60_000, count=2000)) == 1100
    await groups.renew(client, STREAM, ME, ids)
    assert await groups.idle_entries(client, STREAM, idle_ms=60_000, count=2000) == []
    pending = await client.xpending_range(STREAM, keys.GROUP, "-", "+", 2000)
    assert {item["times_delivered"] for item in pending} == {0}


async def test_idle_consumer_without_entries_or_heartbeat_is_removed(client: Client) -> None:
    await groups.make_group(client, STREAM, make_stream=True)
    await client.xadd(STREAM, {"number": 1})
    await groups.read(client, STREAM, "holds", count=1)
    for consumer in ("dead", "quiet"):
        await client.xgroup_createconsumer(STREAM, keys.GROUP, consumer)
    await client.set(keys.sidecar("quiet"), "{}", ex=60)
    assert await groups.remove_dead_consumers(client, STREAM, idle_ms=60_000) == 0
    assert await groups.remove_dead_consumers(client, STREAM, idle_ms=0) == 1
    left = await client.xinfo_consumers(STREAM, keys.GROUP)
    assert [consumer["name"] for consumer in left] == [b"holds", b"quiet"]
