"""Chaos runs wait for slow work, and report work that is stuck or has no end."""

from __future__ import annotations

from itertools import count

from chaos.memories import memory_records
from chaos.memories.load import MODEL
from chaos.progress import Patience, settle
from redis.exceptions import ConnectionError as Unreachable
from support import embedder_fixtures
from support.embedder_fixtures import RedisServer, Team, running

from memory_core.redis_client import Client
from memory_embedder.engines.fake import FakeEncoder

server, client = embedder_fixtures.server, embedder_fixtures.client
SHORT = Patience(stalled_seconds=0.2, stalled_looks=10, most_seconds=30.0, pause=0.01)


async def test_settle_waits_longer_than_a_stall_while_work_progresses() -> None:
    left = iter(range(100, -1, -1))

    async def look() -> list[str]:
        found = next(left)
        return [f"{found} tasks are open"] if found else []

    assert await settle(look, SHORT) == []


async def test_settle_reports_work_that_never_changes() -> None:
    async def look() -> list[str]:
        return ["1 tasks are open"]

    found, why = await settle(look, SHORT)
    assert (found, why) == ("1 tasks are open", "nothing changed for 0 s")


async def test_settle_ends_although_work_changes_forever() -> None:
    attempts = count()

    async def look() -> list[str]:
        return [f"attempt {next(attempts)}"]

    found, why = await settle(look, Patience(most_seconds=0.3, pause=0.01))
    assert found.startswith("attempt")
    assert why == "no end after 0 s"


async def test_settle_needs_many_looks_before_it_calls_work_stuck() -> None:
    looks = count()

    async def look() -> list[str]:
        return ["1 tasks are open"] if next(looks) < 10 else []

    assert await settle(look, Patience(stalled_seconds=0.0, stalled_looks=10, pause=0.01)) == []


async def test_settle_reports_a_redis_that_does_not_answer() -> None:
    async def look() -> list[str]:
        raise Unreachable

    assert (await settle(look, SHORT))[0] == "Redis does not answer: ConnectionError"


async def test_memory_whose_job_was_lost_is_reported_after_the_others(server: RedisServer, client: Client) -> None:
    encoder = FakeEncoder(MODEL)
    team = await Team(client, MODEL, encoder.dimension, "chaos").open()
    await team.store_many(["one text", "another text", "a third text"])
    (lost, _), *_ = await client.xrange(team.jobs, count=1)
    await client.xdel(team.jobs, lost)

    async def look() -> list[str]:
        return await memory_records.unfinished(client, team.names)

    async with running(server.url, encoder):
        left = await settle(look, Patience(stalled_seconds=2.0, pause=0.05))
    assert "1 chunks have no vector" in left
    assert not any("jobs are pending" in what for what in left)
