"""What a sidecar holds and how it deals it out, and how it talks to its consumer group."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import embedder_fixtures
import numpy as np
import pytest
from redis import exceptions as redis_errors

from memory_core import keys
from memory_core.connection import Client
from memory_core.keys import Keys
from memory_embedder.streams import backlog, groups
from memory_embedder.streams.backlog import MAX_TEXTS, Backlog, HeldJobs, TokenisedJob
from memory_embedder.streams.throughput import Throughput

server, client = embedder_fixtures.server, embedder_fixtures.client
STREAM, ME = "stream", "me"


class Clock:
    """Stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """The time that was set, in seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of holdings."""
    made = Clock()
    monkeypatch.setattr(backlog, "time", made)
    return made


@pytest.fixture
def held_jobs() -> HeldJobs:
    """Of a sidecar that may hold 1,000 tokens."""
    load = Throughput(tokens_per_second=500)
    assert load.hold == 1000
    return HeldJobs(load)


def work(length: int, deliveries: int = 1) -> TokenisedJob:
    return TokenisedJob(Keys("n"), None, np.zeros(length, dtype=np.int64), deliveries)  # type: ignore[arg-type]


def test_no_length_starves_and_a_suspect_goes_alone() -> None:
    waiting = Backlog()
    long, suspect = work(200), work(5, deliveries=3)
    waiting.add([long, *(work(5) for _ in range(100)), suspect])
    assert (len(waiting), waiting.has_suspects) == (102, True)
    assert waiting.pick(256) == [suspect]
    assert (len(waiting), waiting.has_suspects) == (101, False)
    assert waiting.pick(256) == [long]
    assert len(waiting.pick(256)) == 51
    assert len(waiting) == 49


def test_each_work_is_picked_once_and_those_of_a_batch_in_their_order() -> None:
    waiting = Backlog()
    works = [work(length) for length in (5, 9, 5, 9, 5, 90)]
    waiting.add(works)
    picked = []
    while some := waiting.pick(256):
        assert some == sorted(some, key=works.index)
        picked += some
    assert sorted(map(works.index, picked)) == list(range(6))


def test_the_third_delivery_makes_a_suspect() -> None:
    assert [work(5, deliveries).is_suspect for deliveries in (1, 2, 3, 4)] == [False, False, True, True]


def test_tokens_held_are_the_sum_of_what_was_added_and_not_dropped(held_jobs: HeldJobs) -> None:
    held_jobs.add("a", b"1-0", 30, 1)
    held_jobs.add("b", b"1-0", 12, 1)
    assert (len(held_jobs), held_jobs.tokens) == (2, 42)
    assert ("a", b"1-0") in held_jobs
    held_jobs.drop("a", b"1-0")
    held_jobs.drop("a", b"1-0")
    assert (len(held_jobs), held_jobs.tokens) == (1, 12)
    assert ("a", b"1-0") not in held_jobs


def test_reading_goes_on_below_three_quarters_of_what_may_be_held(held_jobs: HeldJobs) -> None:
    held_jobs.add("a", b"1-0", 750, 1)
    assert held_jobs.has_room
    held_jobs.add("a", b"2-0", 1, 1)
    assert not held_jobs.has_room
    held_jobs.drop("a", b"1-0")
    assert held_jobs.has_room


def test_texts_are_bounded_however_short(held_jobs: HeldJobs) -> None:
    for number in range(MAX_TEXTS * 3 // 4):
        held_jobs.add("a", b"%d-0" % number, 0, 1)
    assert held_jobs.has_room
    assert held_jobs.room() == MAX_TEXTS // 4
    held_jobs.add("b", b"0-0", 0, 1)
    assert not held_jobs.has_room
    for number in range(MAX_TEXTS):
        held_jobs.add("c", b"%d-0" % number, 0, 1)
    assert held_jobs.room() == 0


def test_room_is_counted_in_texts_of_the_mean_length(held_jobs: HeldJobs) -> None:
    assert held_jobs.room() == 1000 // 32
    for number in range(2000):
        held_jobs.add("a", b"%d-0" % number, 100, 1)
        held_jobs.drop("a", b"%d-0" % number)
    assert held_jobs.room() in {9, 10}
    held_jobs.add("a", b"0-0", 500, 1)
    assert held_jobs.room() in {4, 5}
    held_jobs.add("a", b"1-0", 2000, 1)
    assert held_jobs.room() == 0


def test_holds_are_renewed_as_they_age(held_jobs: HeldJobs, clock: Clock) -> None:
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


async def test_the_group_is_made_once_and_begins_with_what_is_there(client: Client) -> None:
    assert await groups.make_group(client, STREAM, make_stream=False) is False
    assert not await client.exists(STREAM)
    assert await groups.make_group(client, STREAM, make_stream=True) is True
    assert await groups.make_group(client, STREAM, make_stream=False) is True
    await client.delete(STREAM)
    await client.xadd(STREAM, {"number": 1})
    assert [fields for _, fields in await groups.read(client, STREAM, ME, count=10)] == [{b"number": b"1"}]


async def test_of_a_stream_that_is_not_there_nothing_is_read(client: Client) -> None:
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
async def test_what_else_redis_refuses_is_raised(client: Client, call: Callable[[Client], Awaitable[object]]) -> None:
    await client.set(STREAM, "no stream")
    with pytest.raises(redis_errors.ResponseError, match="WRONGTYPE"):
        await call(client)


async def test_entries_are_seen_as_idle_from_a_time_on_and_claimed_by_one(client: Client) -> None:
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


async def test_more_entries_than_one_command_takes_are_all_kept(client: Client) -> None:
    await groups.make_group(client, STREAM, make_stream=True)
    ids = [await client.xadd(STREAM, {"number": number}) for number in range(1100)]
    await groups.read(client, STREAM, ME, count=2000)
    await groups.release(client, STREAM, ME, ids, 0)
    assert len(await groups.idle_entries(client, STREAM, idle_ms=60_000, count=2000)) == 1100
    await groups.renew(client, STREAM, ME, ids)
    assert await groups.idle_entries(client, STREAM, idle_ms=60_000, count=2000) == []
    pending = await client.xpending_range(STREAM, keys.GROUP, "-", "+", 2000)
    assert {item["times_delivered"] for item in pending} == {0}


async def test_a_consumer_goes_once_it_holds_nothing_and_is_silent(client: Client) -> None:
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
