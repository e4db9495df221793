"""The bulk engine through the whole stack: permissions, freshness, failing requests and its users."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import pytest
import pytest_asyncio
from support.bulk_helpers import PUBLIC, unit_vectors
from support.embedder_fixtures import wait_until
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Agent, Server, Stack

from memory_core.errors import BulkUnavailable
from memory_core.records.keys import Keys
from memory_core.records.memory import Priority
from memory_core.records.model import Model
from memory_core.records.times import parse_time
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.contract.reports import ClustersAnswer, DuplicatesAnswer
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.index.filters import ResolvedFilters
from memory_server.operations.quarantine import lift, quarantine
from memory_server.search import reports
from memory_server.search.bulk_neighbours import readable_selection

FACTS = ["The harbour opens at six.", "Ships leave the harbour at noon.", "Tea grows on hills.", "Tea is drunk hot."]


async def offered(server: Server) -> bool:
    """Whether the server knows of a bulk engine. It checks every two seconds."""
    return await server.service.bulk.is_offered(Model(DEFAULT_MODEL, 384))


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def ready(request: pytest.FixtureRequest) -> None:
    """The sidecar's bulk engine starts shortly after the sidecar."""
    if "server" in request.fixturenames:
        server: Server = request.getfixturevalue("server")
        await wait_until(lambda: offered(server))


async def visible(server: Server, namespace: str, name: str, **filters: Any) -> set[str]:
    """The ids that the engine returns for an agent, before the server checks the records."""
    principal = await resolve(server.service.backend, RequestContext(Caller(namespace, name)))
    query = unit_vectors(1, 384)
    selection = readable_selection(principal, ResolvedFilters(**filters))
    (found,) = await server.service.bulk.nearest(namespace, selection, query, 1000, exact=True, wait=20.0)
    return {memory_id for memory_id, _, _ in found}


async def similar(agent: Agent, memory_id: str, **arguments: Any) -> tuple[list[str], dict[str, Any]]:
    """The contents that an exact comparison finds, and the complete answer."""
    answer = await agent.call("find_similar_memories", memory_id=memory_id, exact=True, **arguments)
    return [hit["memory"]["content"] for hit in answer["hits"]], answer


async def test_exact_comparison_agrees_with_redis(server: Server, alice: Agent, bob: Agent) -> None:
    ids = [await alice.store(fact, visibility="public", wait=True) for fact in FACTS]
    await alice.store("Ships are painted in the harbour.", wait=True)
    await bob.store("Tea grows in gardens.", visibility="public", priority="archive", wait=True)
    for reader in (alice, bob):
        for memory_id in ids:
            for filters in ({}, {"limit": 2}, {"agent_ids": ["alice"]}, {"include_archive": True}):
                contents, answer = await similar(reader, memory_id, **filters)
                by_redis = await reader.call("find_similar_memories", memory_id=memory_id, **filters)
                assert contents == [hit["memory"]["content"] for hit in by_redis["hits"]]
                assert [hit["score"] for hit in answer["hits"]] == [hit["score"] for hit in by_redis["hits"]]
                assert answer.get("reason") is None


async def test_unreadable_memories_never_leave_the_engine(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    mine = await alice.store("The harbour opens at six.", wait=True)
    before = (await similar(alice, mine))[1]["hits"]
    hidden = [await bob.store(f"The harbour opens at six, pier {number}.", wait=True) for number in range(5)]
    assert (await similar(alice, mine))[1]["hits"] == before == []
    assert await visible(server, namespace, "alice") == {mine}
    assert await visible(server, namespace, "bob") == set(hidden)
    assert await visible(server, namespace, "nobody") == set()


async def test_mirror_follows_every_change(server: Server, namespace: str, alice: Agent, bob: Agent) -> None:
    async def seen() -> set[str]:
        return await visible(server, namespace, "bob")

    memory = await alice.store("Tea grows on hills.", wait=True, tags=["tea"])
    assert await seen() == set()
    await alice.call("update_memory", memory_id=memory, visibility="public")
    assert await seen() == {memory}
    assert await visible(server, namespace, "bob", tags=("tea",)) == {memory}
    await alice.call("update_memory", memory_id=memory, tags=["coffee"], priority="archive")
    assert await seen() == set()
    assert await visible(server, namespace, "bob", tags=("tea",), include_archive=True) == set()
    assert await visible(server, namespace, "bob", priorities=(Priority.ARCHIVE,)) == {memory}
    await alice.call("update_memory", memory_id=memory, visibility="private", priority="medium")
    assert await seen() == set()
    await bob.call("register_agent")
    grant = await alice.call("share_context_with_agent", target_agent="bob", memory_ids=[memory])
    assert await seen() == {memory}
    await alice.call("revoke_shared_context", grant_id=grant["grant_id"])
    assert await seen() == set()
    brief = await alice.store("Tea is cheap today.", visibility="public", ttl_seconds=1, wait=True)

    async def has_expired() -> bool:
        return brief not in await seen()

    await wait_until(has_expired)
    gone = await alice.store("Tea was cheap.", visibility="public", wait=True)
    assert await seen() == {gone}
    await alice.call("clear_memory", memory_ids=[gone])
    assert await seen() == set()


async def test_long_memories_are_compared_by_every_chunk(server: Server, namespace: str, alice: Agent) -> None:
    long = await alice.store("The fox digs a den under the hill. " * 150, tags=["fox"])

    async def all_embedded() -> bool:
        return (await alice.call("memory_stats"))["vector_backlog"] == 0

    await wait_until(all_embedded)
    principal = await resolve(server.service.backend, RequestContext(Caller(namespace, "alice")))

    async def pieces(tag: str) -> list[int]:
        selection = readable_selection(principal, ResolvedFilters(tags=(tag,)))
        (found,) = await server.service.bulk.nearest(
            namespace, selection, unit_vectors(1, 384), 100, exact=True, wait=20.0
        )
        assert {memory_id for memory_id, _, _ in found} <= {long}
        return sorted(piece for _, piece, _ in found)

    count = (await alice.call("retrieve_memory", memory_id=long))["memory"]["pieces"]
    assert count > 1
    assert await pieces("fox") == list(range(count))
    await alice.call("update_memory", memory_id=long, tags=["vixen"])
    assert await pieces("fox") == []
    assert await pieces("vixen") == list(range(count))


async def test_memories_of_a_deleted_agent_are_gone_at_once(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    await bob.call("register_agent")
    public = await bob.store("Tea is sold here.", visibility="public", wait=True)
    assert await visible(server, namespace, "alice") == {public}
    await bob.call("unregister_agent", memories="delete")
    assert await visible(server, namespace, "alice") == set()


async def test_many_queries_are_answered_together_and_in_order(server: Server, namespace: str, alice: Agent) -> None:
    ids = [await alice.store(fact, wait=True) for fact in FACTS]
    vectors = await server.service.embeddings.embed(FACTS, Caller(namespace, "alice"))
    principal = await resolve(server.service.backend, RequestContext(Caller(namespace, "alice")))
    selection = readable_selection(principal, ResolvedFilters())
    for exact in (True, False):
        found = await server.service.bulk.nearest(namespace, selection, vectors, 1, exact=exact, wait=20.0)
        assert [[one[:2] for one in row] for row in found] == [[(memory_id, 0)] for memory_id in ids]


async def test_redis_compares_when_the_sidecar_is_silent_and_the_answer_says_so(
    stack: Stack, server: Server, namespace: str, alice: Agent
) -> None:
    ids = [await alice.store(fact, wait=True) for fact in FACTS]
    expected = (await similar(alice, ids[0]))[1]["hits"]
    process = stack.sidecar.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        _, answer = await similar(alice, ids[0])
        with pytest.raises(BulkUnavailable, match="within"):
            await server.service.bulk.nearest(namespace, PUBLIC, unit_vectors(1, 384), 1, exact=True, wait=0.1)
    finally:
        process.send_signal(signal.SIGCONT)
    assert answer["hits"] == expected
    assert "compared by Redis" in answer["reason"]
    assert not answer.get("partial")


@pytest.mark.parametrize("mode", ["vector", "hybrid", "keyword"])
async def test_searches_in_a_batch_find_the_same_as_alone(
    server: Server, namespace: str, alice: Agent, bob: Agent, mode: str
) -> None:
    for number, fact in enumerate(FACTS * 3):
        visibility = "public" if number % 2 else "private"
        await (alice if number % 3 else bob).store(f"{fact} ({number})", visibility=visibility, wait=True)
    await alice.store("The harbour is far. " * 200, visibility="public", wait=True)
    await bob.store("Tea of old.", visibility="public", priority="archive", wait=True)
    before = (await bob.call("gpu_status"))["sidecars"][0]["bulk"]["requests_total"]
    asked = [
        {"query": query, "mode": mode, "limit": limit} | filters
        for query in ("when does the harbour open?", "tea", "what is far away?")
        for limit in (1, 4, 30)
        for filters in ({}, {"agent_ids": ["alice"]}, {"include_archive": True}, {"recency_weight": 0.5})
    ]
    answer = await bob.call(
        "batch_operations", operations=[{"op": "semantic_search", **one} for one in asked], max_tokens=0
    )
    for one, outcome in zip(asked, answer["results"], strict=True):
        alone = await bob.call("semantic_search", **one)
        assert [_scored(hit) for hit in outcome["result"]["hits"]] == [_scored(hit) for hit in alone["hits"]]
    bulk = server.service.bulk

    async def counted() -> bool:
        total = (await bob.call("gpu_status"))["sidecars"][0]["bulk"]["requests_total"]
        return total > before if mode != "keyword" else total == before

    assert await bulk.is_offered(Model(DEFAULT_MODEL, 384))
    await wait_until(counted)


async def test_batch_reads_its_own_writes(server: Server, alice: Agent) -> None:
    memory = await alice.store("The owl is grey.", wait=True)
    search = {"op": "semantic_search", "query": "owl", "mode": "keyword"}
    answer = await alice.call(
        "batch_operations",
        operations=[
            search,
            {"op": "update_memory", "memory_id": memory, "content": "The owl is brown."},
            search,
            {"op": "retrieve_memory", "memory_id": memory},
            {"op": "clear_memory", "memory_ids": [memory]},
            search,
        ],
    )
    found = [
        [hit["memory"]["content"] for hit in one["result"]["hits"]]
        for one in answer["results"]
        if "hits" in one["result"]
    ]
    assert found == [["The owl is grey."], ["The owl is brown."], []]
    assert answer["results"][3]["result"]["memory"]["content"] == "The owl is brown."


def _scored(hit: dict[str, Any]) -> tuple[str, float]:
    # The recency share of a score changes with every call.
    return hit["memory"]["content"], round(hit["score"], 3)


@pytest.mark.parametrize("owner", ["alice", "bob"])
async def test_sensitive_memories_are_compared_outside_the_engine(
    server: Server, namespace: str, alice: Agent, bob: Agent, owner: str
) -> None:
    clear = [await alice.store(fact, visibility="public", wait=True) for fact in FACTS]
    agent = alice if owner == "alice" else bob
    hidden = await agent.store("The harbour gate opens with 9133.", sensitive=True, wait=True)
    for name, reader in (("alice", alice), ("bob", bob)):
        assert await visible(server, namespace, name) == set(clear)
        for memory_id in (*clear, hidden) if name == owner else clear:
            contents, answer = await similar(reader, memory_id, limit=3)
            by_redis = await reader.call("find_similar_memories", memory_id=memory_id, limit=3)
            assert contents == [hit["memory"]["content"] for hit in by_redis["hits"]]
            assert answer.get("reason") is None
    assert "The harbour gate opens with 9133." in (await similar(agent, clear[0], limit=3))[0]


async def test_batched_searches_find_sensitive_and_report_altered_memories(
    stack: Stack, namespace: str, alice: Agent
) -> None:
    for fact in FACTS:
        await alice.store(fact, wait=True)
    await alice.store("The harbour gate opens with 9133.", sensitive=True, wait=True)
    altered = await alice.store("The harbour is for sale.", wait=True)
    await stack.client.hset(Keys(namespace).memory(altered), "content", "The harbour was sold.")
    asked = [{"query": f"harbour {word}", "mode": mode} for word in ("gate", "sale") for mode in ("vector", "hybrid")]
    answer = await alice.call(
        "batch_operations", operations=[{"op": "semantic_search", **one} for one in asked], max_tokens=0
    )
    for one, outcome in zip(asked, answer["results"], strict=True):
        alone = await alice.call("semantic_search", **one)
        assert [_scored(hit) for hit in outcome["result"]["hits"]] == [_scored(hit) for hit in alone["hits"]]
        assert any(hit["memory"]["sensitive"] for hit in alone["hits"])
        assert outcome["result"]["partial"]
        assert outcome["result"]["reason"] == alone["reason"]


async def test_quarantined_memories_never_leave_the_engine(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    mine = await alice.store("Tea grows on hills.", wait=True)
    old = await bob.store("Tea grows in gardens.", visibility="public", wait=True)
    moment = (await alice.call("retrieve_memory", memory_id=old))["memory"]["updated_at"]
    new = await bob.store("Tea grows on the moon.", visibility="public", wait=True)
    everything = {mine, old, new}
    assert await visible(server, namespace, "alice") == everything
    backend = server.service.backend
    await quarantine(backend, namespace, "bob", parse_time(moment) + 1e-3)
    assert await visible(server, namespace, "alice") == {mine, old}
    assert (await similar(alice, mine, limit=1))[0] == ["Tea grows in gardens."]
    assert await visible(server, namespace, "bob") == {old, new}
    await lift(backend, namespace, "bob")
    assert await visible(server, namespace, "alice") == everything


async def test_gpu_status_shows_the_bulk_engine(server: Server, namespace: str, alice: Agent) -> None:
    await alice.store("The owl is grey.", wait=True)
    await visible(server, namespace, "alice")

    async def is_reported() -> bool:
        bulk = (await alice.call("gpu_status"))["sidecars"][0]["bulk"]
        return bulk["vectors"] > 0 and bulk["namespaces"] > 0 and bulk["memory_used"] > 0

    await wait_until(is_reported)
    status = await alice.call("gpu_status")
    bulk = status["sidecars"][0]["bulk"]
    assert bulk["arrays"] == "numpy"
    assert bulk["faiss"]
    assert bulk["memory_used"] <= bulk["memory_total"] == 1 << 30
    assert status["bulk"].startswith("numpy, FAISS")


async def test_reports_show_the_agents_own_duplicates_and_clusters(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    for fact in (*FACTS, "The harbour opens at six!"):
        await alice.store(fact, wait=True)
    await bob.store("The harbour opens at six.", visibility="public", wait=True)
    service, request = server.service, RequestContext(Caller(namespace, "alice"))
    copies = await reports.near_duplicates(service, request, least=0.9, wait=20.0)
    contents = [[one.content for one in group.memories] for group in copies.groups]
    assert contents == [[FACTS[0], "The harbour opens at six!"]]
    assert copies.pairs_left_out == 0
    found = (await reports.clusters(service, request, count=2, show=5, wait=20.0)).clusters
    subjects = [{"tea" if "Tea" in record.content else "sea" for record in one.examples} for one in found]
    assert subjects == [{"sea"}, {"tea"}]
    assert [one.size for one in found] == [3, 2]
    unknown = RequestContext(Caller(namespace, "nobody"))
    assert await reports.near_duplicates(service, unknown, least=0.9, wait=20.0) == DuplicatesAnswer(
        groups=[], pairs_left_out=0
    )
    assert await reports.clusters(service, unknown, count=2, show=5, wait=20.0) == ClustersAnswer(clusters=[])


async def test_reports_are_available_from_the_command_line(
    stack: Stack, namespace: str, alice: Agent, server: Server
) -> None:
    for fact in (FACTS[0], "The harbour opens at six!"):
        await alice.store(fact, wait=True)

    async def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "memory_server", *arguments, "--namespace", namespace]
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, "REDIS_URL": stack.redis.url_of(SERVER), "MEMORY_MASTER_KEY": MASTER_KEY},
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    duplicates, clusters = await asyncio.gather(
        run("duplicates", "alice", "--least", "0.9", "--json"), run("clusters", "alice")
    )
    (group,) = json.loads(duplicates)["groups"]
    assert {memory["content"] for memory in group["memories"]} == {FACTS[0], "The harbour opens at six!"}
    assert "closeness" in clusters
    assert FACTS[0] in clusters
