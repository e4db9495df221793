"""Kills, outages, poison texts and races lose no memory and bring none back."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from support import embedder_fixtures
from support.embedder_fixtures import (
    FAST,
    TEXTS,
    RedisServer,
    Team,
    ask,
    await_reply,
    cosine,
    running,
    start_process,
    wait_until,
)
from support.redis_users import SIDECAR

from memory_core.records import keys
from memory_core.records.keys import Keys
from memory_core.records.vectors import Matrix
from memory_core.redis_client import Client
from memory_core.store import functions
from memory_core.store import sidecar as sidecars
from memory_core.store.connection import connect
from memory_embedder.engines.encoder import Tokens, encode
from memory_embedder.engines.fake import FakeEncoder
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_embedder.sidecar import Sidecar, SidecarOptions
from memory_embedder.streams.backlog import MAX_DELIVERIES
from memory_embedder.streams.inference import EncoderBroken

server, client, team = embedder_fixtures.server, embedder_fixtures.client, embedder_fixtures.team


class GatedEncoder(FakeEncoder):
    """Blocks inference while `gate` is closed. `waiting` is set when a batch waits."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def infer(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        self.waiting.set()
        assert self.gate.wait(20)
        return super().infer(tokens, spare_core=spare_core)

    async def until_waiting(self) -> None:
        """Wait until a batch waits at the closed gate."""
        assert await asyncio.to_thread(self.waiting.wait, 20)

    def close(self) -> None:
        """Block the next batch."""
        self.waiting.clear()
        self.gate.clear()


class DyingEncoder(FakeEncoder):
    """Works until `broken` is set, then fails for every text."""

    broken = False

    def infer(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        if self.broken:
            raise RuntimeError("device lost")
        return super().infer(tokens, spare_core=spare_core)


async def test_poison_text_is_buried_and_other_texts_are_embedded(
    server: RedisServer, client: Client, team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [*TEXTS[:10], "a very secret poison text", *TEXTS[10:20]]
    with caplog.at_level(logging.DEBUG):
        async with running(server.url, FakeEncoder(poison="poison"), SidecarOptions(lease=0.15, scan=0.1, block=0.1)):
            ids = await team.store_many(texts)
            await team.wait_for_vectors(ids[:10] + ids[11:])
            await team.wait_until_drained()
    assert await team.vector(ids[10]) is None
    [(_, buried)] = await client.xrange(team.names.dead_jobs)
    assert (buried[b"id"].decode(), buried[b"error"]) == (ids[10], b"RuntimeError")
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ({b"body": b"\xff\xfe"}, b"is not UTF-8"),
        ({b"model": b"other"}, b"needs another model than fake"),
    ],
)
async def test_unreadable_job_is_retried_then_buried(
    server: RedisServer, client: Client, team: Team, job: dict[bytes, bytes], reason: bytes
) -> None:
    memory_id = await team.store("unreadable")
    [(entry, fields)] = await client.xrange(team.jobs)
    await client.xdel(team.jobs, entry)
    await client.xadd(team.jobs, fields | job)
    async with running(server.url, FakeEncoder(), SidecarOptions(lease=0.15, scan=0.1, block=0.1)):
        await team.wait_until_drained()
    [(_, buried)] = await client.xrange(team.names.dead_jobs)
    assert (buried[b"id"].decode(), buried[b"error"]) == (memory_id, reason)


async def _deliver(team: Team, ids: list[str], times: int) -> None:
    """Make the jobs of `ids` pending at a dead consumer, delivered `times` times."""
    await team.client.xreadgroup(keys.GROUP, "dead", {team.jobs: ">"})
    found = [item["message_id"] for item in await team.client.xpending_range(team.jobs, keys.GROUP, "-", "+", 99)]
    assert len(found) == len(ids)
    await team.client.xclaim(team.jobs, keys.GROUP, "dead", 0, found, idle=60_000, retrycount=times)


async def test_job_delivered_five_times_is_buried_without_inference(
    server: RedisServer, client: Client, team: Team
) -> None:
    ids = [await team.store("kills the process")]
    await _deliver(team, ids, 5)
    encoder = FakeEncoder()
    async with running(server.url, encoder):
        await team.wait_until_drained()
    assert await team.vector(ids[0]) is None
    assert await client.xlen(team.names.dead_jobs) == 1


async def test_suspect_jobs_are_embedded_one_by_one(server: RedisServer, team: Team) -> None:
    ids = await team.store_many(TEXTS[:5])
    await _deliver(team, ids, 2)
    encoder = FakeEncoder()
    async with running(server.url, encoder):
        warm_up = len(encoder.batches)
        await team.wait_for_vectors(ids)
        assert encoder.batches[warm_up:] == [1] * 5


async def test_broken_engine_stops_the_sidecar_and_buries_nothing(
    server: RedisServer, client: Client, team: Team
) -> None:
    encoder = DyingEncoder()
    sidecar = Sidecar(server.url, encoder, FAST)
    task = asyncio.create_task(sidecar.run())
    ready = await team.store("while it works")
    await team.wait_for_vectors([ready])
    encoder.broken = True
    waiting = await team.store_many(TEXTS[:10])
    with pytest.raises(EncoderBroken):
        await asyncio.wait_for(task, 20)
    assert await client.xlen(team.names.dead_jobs) == 0
    async with running(server.url, FakeEncoder()):
        await team.wait_for_vectors(waiting)


async def test_memory_deleted_while_queued_stays_deleted(server: RedisServer, client: Client, team: Team) -> None:
    encoder = GatedEncoder()
    async with running(server.url, encoder):
        encoder.close()
        memory_id = await team.store("soon gone")
        await encoder.until_waiting()
        await team.delete(memory_id)
        encoder.gate.set()
        await team.wait_until_drained()
    assert not await client.exists(team.names.memory(memory_id))


async def test_memory_changed_while_queued_gets_the_new_vector(server: RedisServer, team: Team) -> None:
    encoder = GatedEncoder()
    async with running(server.url, encoder):
        encoder.close()
        memory_id = await team.store("the old text")
        await encoder.until_waiting()
        await team.change(memory_id, "the old text", "the new text")
        encoder.gate.set()
        await team.wait_until_drained()
        await team.wait_for_vectors([memory_id])
    vector = await team.vector(memory_id)
    assert vector is not None
    assert cosine(vector, encode(FakeEncoder(), ["the new text"])[0]) > 0.9999


async def test_job_in_progress_longer_than_its_lease_is_not_reclaimed(server: RedisServer, team: Team) -> None:
    slow, other = GatedEncoder(), FakeEncoder()
    async with running(server.url, slow):
        slow.close()
        memory_id = await team.store("takes its time")
        await slow.until_waiting()
        async with running(server.url, other):
            warm_up = len(other.batches)
            held = await team.client.xpending_range(team.jobs, keys.GROUP, "-", "+", 1)
            await wait_until(lambda: _renewed_after(team, held[0]["message_id"], 3 * FAST.lease))
            assert len(other.batches) == warm_up
            slow.gate.set()
            await team.wait_for_vectors([memory_id])


async def _renewed_after(team: Team, entry: bytes, seconds: float) -> bool:
    """Whether an entry was delivered `seconds` ago, and only once."""
    [held] = await team.client.xpending_range(team.jobs, keys.GROUP, entry, entry, 1)
    assert held["times_delivered"] == 1
    now, micro = await team.client.time()
    return now * 1000 + micro / 1000 - int(entry.split(b"-")[0]) > seconds * 1000


async def test_stopping_sidecar_releases_its_jobs_at_once(server: RedisServer, team: Team) -> None:
    encoder = FakeEncoder(seconds_per_token=0.0002)
    async with running(server.url, encoder, SidecarOptions(lease=60, block=0.1)):
        ids = await team.store_many(TEXTS[:300])
        await wait_until(lambda: team.count_vectors(ids))
    assert await team.count_vectors(ids) < 300
    async with running(server.url, FakeEncoder(), SidecarOptions(lease=60, block=0.1)):
        await team.wait_for_vectors(ids)


@pytest.mark.long
async def test_killed_sidecar_loses_no_job(server: RedisServer, client: Client) -> None:
    team = await Team(client, DEFAULT_MODEL, 384).open()
    ids = await team.store_many(TEXTS)
    first = await start_process(server.url, "--lease", "1")
    await wait_until(lambda: team.count_vectors(ids))
    first.kill()
    await first.communicate()
    assert await _pending(client, team.jobs) > 0
    second = await start_process(server.url, "--lease", "1")
    await team.wait_for_vectors(ids)
    second.terminate()
    await second.communicate()
    assert second.returncode == 0
    assert await client.xlen(team.jobs) == 0
    assert await client.xlen(team.names.dead_jobs) == 0


async def _pending(client: Client, stream: str) -> int:
    return (await client.xpending(stream, keys.GROUP))["pending"]


async def test_sidecar_survives_a_restart_of_redis(tmp_path_factory: pytest.TempPathFactory) -> None:
    redis = RedisServer(tmp_path_factory.mktemp("aof"))
    redis.start()
    async with connect(redis.url) as client:
        team = await Team(client, "fake", 16).open()
        async with running(redis.url, FakeEncoder(seconds_per_token=0.0005)) as sidecar:
            ids = await team.store_many(TEXTS[:200])
            await wait_until(lambda: team.count_vectors(ids))
            redis.kill()
            redis.start()
            await wait_until(lambda: _answers(client))
            later = await team.store("after the restart")
            await team.wait_for_vectors([*ids, later])
            reply = await await_reply(client, await ask(client, "fake", ["still there"]))
            assert reply.error == ""
            await wait_until(lambda: _is_living(client, sidecar.id))
    redis.kill()


async def _answers(client: Client) -> bool:
    try:
        return await client.ping()
    except Exception:
        return False


async def _is_living(client: Client, sidecar_id: str) -> bool:
    return sidecar_id in {status.id for status in await sidecars.living(client)}


async def test_sidecar_serves_a_flushed_redis(server: RedisServer, client: Client) -> None:
    async with running(server.url, FakeEncoder()):
        await client.flushall()
        team = await Team(client, "fake", 16, namespace="again").open()
        await team.wait_for_vectors([await team.store("after the flush")])
        assert (await await_reply(client, await ask(client, "fake", ["x"]))).error == ""


@pytest.mark.long
async def test_jobs_wait_for_functions_that_only_a_server_may_load(
    server: RedisServer, client: Client, team: Team
) -> None:
    encoder = GatedEncoder()
    async with running(server.url_of(SIDECAR), encoder):
        encoder.close()
        memory_ids = await team.store_many(["one text", "another text"])
        await encoder.until_waiting()
        await client.execute_command("FUNCTION", "FLUSH")
        encoder.gate.set()
        await asyncio.sleep(2 * MAX_DELIVERIES * FAST.lease)  # long enough to bury jobs that are delivered again
        await functions.load_library(client)
        await team.wait_for_vectors(memory_ids)
        await team.wait_until_drained()


async def test_job_whose_commit_failed_is_delivered_again(server: RedisServer, client: Client, team: Team) -> None:
    encoder = GatedEncoder()
    async with running(server.url, encoder):
        encoder.close()
        memory_ids = await team.store_many(["one text", "another text"])
        await encoder.until_waiting()
        await client.config_set("maxmemory", "1")
        encoder.gate.set()
        await asyncio.sleep(FAST.lease / 2)
        await client.config_set("maxmemory", "0")
        await team.wait_for_vectors(memory_ids)
        await team.wait_until_drained()


async def test_sidecar_outlives_keys_of_another_type(server: RedisServer, client: Client, team: Team) -> None:
    model = team.settings.embedding_model
    damaged = [keys.NAMESPACES, keys.SIDECARS, keys.bell(0), keys.bell(1), keys.asks(0, model), keys.bulk(0, model)]
    encoder = FakeEncoder()
    async with running(server.url, encoder) as sidecar:
        for key in [*damaged, Keys("other").meta]:
            await client.delete(key)
            await client.set(key, "damaged")
        await asyncio.sleep(1)
        assert sidecar.status().state == "ready"
        await client.delete(*damaged)
        await client.sadd(keys.NAMESPACES, "other", team.names.namespace)
        assert not (await await_reply(client, await ask(client, model, TEXTS[:1]))).error
        await team.wait_for_vectors([await team.store(TEXTS[0])])
    for key in damaged:
        await client.delete(key)
        await client.set(key, "damaged")
    starting = Sidecar(server.url, FakeEncoder(), FAST)
    task = asyncio.create_task(starting.run())
    await asyncio.sleep(0.5)
    assert not task.done()
    await client.delete(*damaged)

    async def ready() -> bool:
        return task.done() or starting.status().state == "ready"

    await wait_until(ready)
    starting.stop()
    await task
