"""On a Redis Cluster each namespace lives whole on one shard, and everything works there as on a single Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from cluster import MASTERS, RedisCluster, cluster_stack
from redis_users import denials
from stack import Stack

from memory_core.connection import shards

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAMESPACES = [f"team-{number}" for number in range(6)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stack]:
    """A cluster of three masters with a replica each, a sidecar and a server."""
    async with cluster_stack(tmp_path_factory.mktemp("cluster"), embed_wait_seconds=15.0) as running:
        yield running
        for shard in await shards(running.client):
            assert not await denials(shard)


@pytest.fixture
def cluster(stack: Stack) -> RedisCluster:
    """The cluster itself."""
    assert isinstance(stack.redis, RedisCluster)
    return stack.redis


async def test_namespaces_spread_over_the_shards_and_each_is_searched_by_meaning(
    stack: Stack, cluster: RedisCluster
) -> None:
    async def use(namespace: str) -> None:
        async with stack.server.agent("alice", namespace) as alice:
            await alice.store(f"the ferry of {namespace} leaves at nine")
            answer = await alice.call("semantic_search", query="when does the boat depart?")
            assert [hit["memory"]["content"] for hit in answer["hits"]] == [f"the ferry of {namespace} leaves at nine"]
            assert not answer.get("partial"), answer

    await asyncio.gather(*map(use, NAMESPACES))
    assert len({(await cluster.master_of(namespace)).port for namespace in NAMESPACES}) == MASTERS
