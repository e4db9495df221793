"""On a Redis Cluster each namespace is on one shard, and everything works as on a single Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio
from support.cluster import MASTERS, RedisCluster, cluster_stack
from support.embedder_fixtures import wait_until
from support.redis_users import denials
from support.stack import Agent, Refused, Stack
from support.task_helpers import complete, joined, lease, state, submit

from memory_core.errors import UnsafeStart
from memory_core.records.keys import Keys
from memory_core.settings.settings import Settings
from memory_core.store.connection import check_server, connect, shards
from memory_server.operations.doctor import examine
from memory_server.operations.status import read_status

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]
NAMESPACES = [f"team-{number}" for number in range(6)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stack]:
    """A cluster of three masters with one replica each, a sidecar and a server."""
    async with cluster_stack(tmp_path_factory.mktemp("cluster"), embed_wait_seconds=15.0) as running:
        yield running
        async with connect(running.redis.url) as client:
            for shard in await shards(client):
                assert not await denials(shard)


@pytest.fixture
def cluster(stack: Stack) -> RedisCluster:
    assert isinstance(stack.redis, RedisCluster)
    return stack.redis


async def test_namespaces_spread_over_shards_and_each_is_searchable(stack: Stack, cluster: RedisCluster) -> None:
    async def use(namespace: str) -> None:
        async with stack.server.agent("alice", namespace) as alice:
            await alice.store(f"the ferry of {namespace} leaves at nine")
            answer = await alice.call("semantic_search", query="when does the boat depart?")
            assert [hit["memory"]["content"] for hit in answer["hits"]] == [f"the ferry of {namespace} leaves at nine"]
            assert not answer.get("partial"), answer

    await asyncio.gather(*map(use, NAMESPACES))
    assert len({(await cluster.master_of(namespace)).port for namespace in NAMESPACES}) == MASTERS


async def test_waiting_agents_receive_tasks_and_events_on_every_shard(stack: Stack) -> None:
    async def work(namespace: str) -> None:
        async with stack.server.agent("alice", namespace) as alice, joined(stack.server, namespace, "bob") as bob:
            waits = asyncio.create_task(bob.call("wait_for_events", kinds=["task"], timeout_seconds=20))

            async def is_heard() -> bool:
                return waits.done() or stack.server.service.events.count(namespace) > 0

            await wait_until(is_heard)
            task_id = await submit(alice, f"Sail the boat of {namespace}.")
            assert task_id in {event["id"] for event in (await waits)["events"]}
            await complete(bob, await lease(bob))
            assert await state(alice, task_id) == "completed"

    await asyncio.gather(*map(work, NAMESPACES))


async def test_critical_memories_wait_for_their_own_shard_only(stack: Stack) -> None:
    async def work(namespace: str) -> None:
        async with stack.server.agent("alice", namespace) as alice:
            stored = await alice.call("store_memory", content="The key is under the mat.", priority="critical")
            assert stored["durability"] == "synced+1 replica", stored
            await alice.call("clear_memory", memory_ids=[stored["memory_id"]])

    await asyncio.gather(*map(work, NAMESPACES))


async def test_doctor_reports_a_healthy_cluster_with_all_namespaces(cluster: RedisCluster) -> None:
    report = await examine(Settings.load(redis_url=cluster.url, port=0))
    assert report.healthy, report.text()
    assert report.sidecars
    status = await read_status(Settings.load(redis_url=cluster.url, port=0))
    assert {state.namespace: state.memories for state in status.namespaces} == dict.fromkeys(NAMESPACES, 1)


async def test_single_cluster_node_is_refused(cluster: RedisCluster) -> None:
    async with connect(f"redis://{cluster.nodes[0].address}") as client:
        with pytest.raises(UnsafeStart, match="node of a cluster"):
            await check_server(client)


async def test_namespace_whose_slot_moves_answers_correctly_and_reindexes(stack: Stack, cluster: RedisCluster) -> None:
    namespace, texts = "moved", {f"boat number {number}" for number in range(20)}
    source = await cluster.master_of(namespace)
    target = next(node for node in cluster.nodes[:MASTERS] if node is not source)
    halfway = asyncio.Event()
    async with stack.server.agent("alice", namespace) as alice, connect(cluster.url) as late:
        await late.ping()
        ids = [await alice.store(text) for text in sorted(texts)]
        moving = asyncio.create_task(cluster.move(namespace, target, halfway=halfway))
        await wait_until(lambda: _is_away(alice))
        waits = asyncio.create_task(alice.store("a text stored on the way"))
        for memory_id in ids:
            await alice.call("retrieve_memory", memory_id=memory_id)
        halfway.set()
        answers = [await _boats(alice)]
        while not moving.done():
            answers.append(await _boats(alice))
        await moving

        async def is_whole() -> bool:
            answers.append(await _boats(alice))
            return answers[-1] == texts

        await wait_until(is_whole)
        assert all(answer in (None, texts) for answer in answers)
        for memory_id in (*ids, await waits):
            await alice.call("retrieve_memory", memory_id=memory_id)
        async with late.pipeline(transaction=True) as pipe:
            assert await pipe.exists(Keys(namespace).meta).time().execute(), (
                "this client still maps the slot to the old node"
            )
        await alice.store("a boat more")
        assert "a boat more" in await alice.search("boat", limit=50)
    async with target.client() as client:
        assert Keys(namespace).index().encode() in await client.execute_command("FT._LIST")


async def test_no_partial_write_while_a_slot_migrates(stack: Stack, cluster: RedisCluster) -> None:
    names = Keys("leaving")
    source = await cluster.master_of(names.namespace)
    target = next(node for node in cluster.nodes[:MASTERS] if node is not source)
    async with (
        joined(stack.server, names.namespace, "alice") as alice,
        joined(stack.server, names.namespace, "bob") as bob,
        source.client() as client,
    ):
        await alice.store("a private plan", context="plans")
        share = {"target_agent": "bob", "context": "plans"}

        async def written() -> list[Any]:
            return [
                await client.xlen(names.audit),
                await client.xlen(names.events),
                await client.hgetall(names.counters),
            ]

        async with cluster.leaving(names.namespace, target):
            before = await written()
            assert await _answer(alice, "share_context_with_agent", **share) is None
            assert await written() == before
        await alice.call("share_context_with_agent", **share)
        assert await bob.search("plan") == ["a private plan"]


async def _answer(agent: Agent, tool: str, **arguments: object) -> dict[str, Any] | None:
    """Call a tool; return None if Redis gives no answer. Other errors fail the test."""
    try:
        return await agent.call(tool, **arguments)
    except Refused as refused:
        if refused.code != "store_unavailable":
            raise
        return None


async def _is_away(agent: Agent) -> bool:
    return await _boats(agent) is None


async def _boats(agent: Agent) -> set[str] | None:
    """Search; return None if the answer is an error or partial."""
    answer = await _answer(agent, "semantic_search", query="boat", mode="keyword", limit=50)
    return None if answer is None or answer.get("partial") else {hit["memory"]["content"] for hit in answer["hits"]}


async def test_replica_replaces_a_killed_master_without_affecting_other_shards(
    stack: Stack, cluster: RedisCluster
) -> None:
    lost = await cluster.master_of(NAMESPACES[0])
    others = [name for name in NAMESPACES if await cluster.master_of(name) is not lost]
    agent = stack.server.agent
    async with agent("alice", NAMESPACES[0]) as alice, agent("alice", others[0]) as elsewhere:
        await alice.store("what was acknowledged before the kill")
        async with lost.client() as client:
            assert await client.execute_command("WAIT", 1, 5000) >= 1
        lost.kill()

        async def is_followed() -> bool:
            assert await elsewhere.search("ferry") == [f"the ferry of {others[0]} leaves at nine"]
            answer = await _answer(alice, "semantic_search", query="kill", limit=1)
            return answer is not None and not answer.get("partial")

        await wait_until(is_followed)
        assert (await alice.search("kill"))[0] == "what was acknowledged before the kill"
        await alice.store("what was written after the kill")
        assert (await alice.search("after the kill"))[0] == "what was written after the kill"
