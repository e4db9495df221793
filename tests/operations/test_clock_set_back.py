"""Redis's clock was two hours ahead and is set back: nothing waits until it gets there again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio
from chaos.stored import clock
from support.embedder_fixtures import RedisServer, Team, running, wait_until
from support.stack import Server, serving

from memory_core.records import keys
from memory_core.redis_client import Client
from memory_core.store.connection import connect
from memory_embedder.engines.fake import FakeEncoder
from memory_embedder.engines.weights import DEFAULT_MODEL

pytestmark = pytest.mark.skipif(not clock.works(), reason="libfaketime is not installed: apt install libfaketime")
AHEAD = 7200


class Ahead:
    """A Redis whose clock is ahead until it is set back."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        clock.set_offset(self._file, AHEAD)
        preload = {"LD_PRELOAD": str(clock.library())}
        self.server = RedisServer(folder, environment=clock.environment(self._file) | preload)
        self.client: Client = connect(self.server.url)

    async def set_back(self) -> None:
        """Have the clock be right from now on."""
        ahead, _ = await self.client.time()
        clock.set_offset(self._file, 0)

        async def is_back() -> bool:
            return (await self.client.time())[0] < ahead

        await wait_until(is_back)


@pytest_asyncio.fixture
async def redis(tmp_path: Path) -> AsyncGenerator[Ahead]:
    """A Redis of one test."""
    made = Ahead(tmp_path)
    made.server.start()
    yield made
    await made.client.aclose()
    made.server.kill()


@pytest_asyncio.fixture
async def serving_it(redis: Ahead) -> AsyncGenerator[Server]:
    """A server on it, started while its clock is ahead."""
    async with serving(redis.server.url) as server:
        yield server


async def test_jobs_that_a_dead_sidecar_took_are_taken_over(redis: Ahead) -> None:
    team = await Team(redis.client, "fake", 16).open()
    memory_ids = await team.store_many(["one text", "another text"])
    taken = await redis.client.xreadgroup(keys.GROUP, "dead", {team.jobs: ">"})
    assert len(next(iter(taken.values()))[0]) == len(memory_ids)
    await redis.set_back()
    async with running(redis.server.url, FakeEncoder()):
        await team.wait_for_vectors(memory_ids)
        await team.wait_until_drained()


async def test_a_server_hears_replies_in_a_stream_that_was_made_anew(redis: Ahead, serving_it: Server) -> None:
    async with running(redis.server.url, FakeEncoder(DEFAULT_MODEL, 384)), serving_it.agent("ann", "back") as ann:
        assert (await ann.call("store_memory", content="The heron nests by the weir."))["vector"] == "ready"
        await redis.set_back()
        # As it does by itself once nobody has asked for a minute.
        await redis.client.delete(serving_it.service.embeddings.replies.address)
        assert (await ann.call("store_memory", content="The otter sleeps."))["vector"] == "ready"


async def test_the_sweep_of_a_server_that_died_is_gone_on_with(redis: Ahead, serving_it: Server) -> None:
    service, names = serving_it.service, keys.Keys("back")
    async with serving_it.agent("ann", "back") as ann:
        memory_id = (await ann.call("store_memory", content="A long tale. " * 600, wait=False))["memory_id"]
    await wait_until_none(redis.client, names)
    chore_at = (await redis.client.time())[0]
    await redis.client.set(keys.SWEEPER, "dead", ex=6)
    await redis.client.zadd(names.chores, {f"{memory_id}:4": chore_at})
    await redis.set_back()
    before = service.counters.sweeps["done"]
    await wait_until_none(redis.client, names)
    assert service.counters.sweeps["done"] > before


async def wait_until_none(client: Client, names: keys.Keys) -> None:
    """Wait until no chore is left."""

    async def none() -> bool:
        return not await client.zcard(names.chores)

    await wait_until(none)
