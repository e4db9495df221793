"""After Redis's clock is set back by two hours, nothing waits for the old time to return."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio
from chaos.memories import clock
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
        """Correct the clock."""
        ahead, _ = await self.client.time()
        clock.set_offset(self._file, 0)

        async def is_back() -> bool:
            return (await self.client.time())[0] < ahead

        await wait_until(is_back)


@pytest_asyncio.fixture
async def redis(tmp_path: Path) -> AsyncGenerator[Ahead]:
    """A Redis for one test."""
    made = Ahead(tmp_path)
    made.server.start()
    yield made
    await made.client.aclose()
    made.server.kill()


@pytest_asyncio.fixture
async def running_server(redis: Ahead) -> AsyncGenerator[Server]:
    """A server on that Redis, started while the clock is ahead."""
    async with serving(redis.server.url) as server:
        yield server


async def test_jobs_of_a_dead_sidecar_are_reclaimed(redis: Ahead) -> None:
    team = await Team(redis.client, "fake", 16).open()
    memory_ids = await team.store_many(["one text", "another text"])
    taken = await redis.client.xreadgroup(keys.GROUP, "dead", {team.jobs: ">"})
    assert len(next(iter(taken.values()))[0]) == len(memory_ids)
    await redis.set_back()
    async with running(redis.server.url, FakeEncoder()):
        await team.wait_for_vectors(memory_ids)
        await team.wait_until_drained()


@pytest.mark.long
async def test_server_receives_replies_from_a_recreated_stream(redis: Ahead, running_server: Server) -> None:
    async with running(redis.server.url, FakeEncoder(DEFAULT_MODEL, 384)), running_server.agent("ann", "back") as ann:
        assert (await ann.call("store_memory", content="The heron nests by the weir."))["vector"] == "ready"
        await redis.set_back()
        # The server does this after a minute without questions.
        await redis.client.delete(running_server.service.embeddings.replies.address)
        assert (await ann.call("store_memory", content="The otter sleeps."))["vector"] == "ready"


@pytest.mark.long
async def test_sweep_of_a_dead_server_is_continued(redis: Ahead, running_server: Server) -> None:
    service, names = running_server.service, keys.Keys("back")
    async with running_server.agent("ann", "back") as ann:
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
