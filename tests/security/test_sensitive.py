"""Sensitive memories: their readers find them by meaning; altered ones are refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from support.embedder_fixtures import cosine, wait_until
from support.long_content import FACT, prose
from support.redis_users import SERVER
from support.sharing_helpers import readable, refusal, register, share
from support.stack import Agent, Server, Stack, in_own_task, serving

from memory_core.records.codec import unpack
from memory_core.records.keys import Keys
from memory_server.engine.request_context import Caller

SECRET = "The vault behind the painting opens with 9133."
QUESTION = "how do I get into the strongbox on the wall?"


@pytest_asyncio.fixture(loop_scope="session")
async def carol(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """A third agent."""
    async with in_own_task(server.agent("carol", namespace)) as agent:
        yield agent


async def store_sensitive(agent: Agent, content: str = SECRET, **arguments: Any) -> str:
    """Store a sensitive memory and return its id."""
    return await agent.store(content, sensitive=True, **arguments)


async def is_ready(agent: Agent, memory_id: str) -> bool:
    """Whether a memory has its vector."""
    return (await agent.call("retrieve_memory", memory_id=memory_id))["memory"]["vector"] == "ready"


async def hits(agent: Agent, query: str = QUESTION, **arguments: Any) -> list[dict[str, Any]]:
    """Search by meaning."""
    return (await agent.call("semantic_search", query=query, mode="vector", **arguments))["hits"]


async def test_sensitive_memory_reads_like_any_other(alice: Agent) -> None:
    memory_id = await store_sensitive(alice, metadata={"floor": 2}, tags=["house"], context="home", source="butler")
    memory = (await alice.call("retrieve_memory", memory_id=memory_id))["memory"]
    assert (memory["content"], memory["metadata"], memory["sensitive"]) == (SECRET, {"floor": 2}, True)
    assert (memory["tags"], memory["context"], memory["source"], memory["rev"]) == (["house"], "home", "butler", 1)
    listed = await alice.call("get_agent_memories", tags=["house"])
    assert [found["content"] for found in listed["memories"]] == [SECRET]
    assert not listed["partial"]


async def test_sensitive_memory_is_ranked_with_the_owners_others(alice: Agent) -> None:
    await alice.store("The painting in the hall shows a harbour at dawn.")
    await store_sensitive(alice)
    await alice.store("Cabbages are planted in May.")
    found = await hits(alice)
    assert found[0]["memory"]["content"] == SECRET
    assert [hit["memory"]["sensitive"] for hit in found] == [True, False, False]
    scores = [hit["score"] for hit in found]
    assert scores == sorted(scores, reverse=True)
    hybrid = (await alice.call("semantic_search", query="vault 9133"))["hits"][0]
    assert hybrid["memory"]["content"] == SECRET
    assert hybrid["keyword_score"] > 0.3


async def test_filters_apply_to_sensitive_memories(alice: Agent) -> None:
    await store_sensitive(alice, tags=["house"], priority="high")
    assert len(await hits(alice, tags=["house"], priorities=["high"])) == 1
    assert await hits(alice, tags=["garden"]) == []
    assert await hits(alice, priorities=["low"]) == []


async def test_keyword_search_reports_that_it_skips_sensitive_memories(alice: Agent) -> None:
    await store_sensitive(alice)
    answer = await alice.call("semantic_search", query="vault", mode="keyword")
    assert answer["hits"] == []
    assert answer["partial"]
    assert "meaning" in answer["reason"]


async def test_only_owner_and_id_grantee_find_a_sensitive_memory(alice: Agent, bob: Agent, carol: Agent) -> None:
    for name, agent in (("alice", alice), ("bob", bob), ("carol", carol)):
        await register(agent, name)
    memory_id = await store_sensitive(alice, tags=["house"], context="home", memory_type="document")
    for selector in ({"tags": ["house"]}, {"context": "home"}, {"memory_types": ["document"]}):
        await share(alice, "carol", permission="write", **selector)
    await share(alice, "bob", memory_ids=[memory_id])
    assert [hit["memory"]["memory_id"] for hit in await hits(bob)] == [memory_id]
    assert [m["memory"]["content"] for m in (await bob.call("get_shared_context"))["memories"]] == [SECRET]
    assert await readable(bob, [memory_id]) == [memory_id]
    assert await hits(carol) == []
    assert await readable(carol, [memory_id]) == []
    assert (await carol.call("get_shared_context"))["memories"] == []


async def test_writer_can_change_a_sensitive_memory_and_it_stays_sealed(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    for name, agent in (("alice", alice), ("bob", bob)):
        await register(agent, name)
    memory_id = await store_sensitive(alice)
    await share(alice, "bob", permission="write", memory_ids=[memory_id])
    await bob.call("update_memory", memory_id=memory_id, content="The vault opens with 7070 now.")
    assert (await hits(alice, "the vault's number"))[0]["memory"]["content"] == "The vault opens with 7070 now."
    fields = await stack.client.hgetall(Keys(namespace).memory(memory_id))
    assert fields[b"codec"] == b"aes-256-gcm"
    assert not {b"content", b"metadata", b"body", b"terms", b"vec_minilm_l6_v2", b"vec16_minilm_l6_v2"} & fields.keys()


async def test_update_seals_every_part_for_the_new_revision(alice: Agent, stack: Stack, namespace: str) -> None:
    memory_id = await store_sensitive(alice)
    key = Keys(namespace).memory(memory_id)
    before = await stack.client.hgetall(key)
    await alice.call("update_memory", memory_id=memory_id, tags=["moved"])
    after = await stack.client.hgetall(key)
    assert (before[b"rev"], after[b"rev"], before[b"hash"]) == (b"1", b"2", after[b"hash"])
    assert before[b"sealed"] != after[b"sealed"]
    assert (await hits(alice))[0]["memory"]["tags"] == ["moved"]
    for name in ("sealed", "sealed_vec_minilm_l6_v2"):
        await stack.client.hset(key, name, before[name.encode()])
        assert (await refusal(alice, "find_similar_memories", memory_id=memory_id))[0] == "tampered"
        await stack.client.hset(key, name, after[name.encode()])
    assert (await hits(alice))[0]["memory"]["content"] == SECRET


async def test_sensitive_memory_cannot_be_stored_or_made_public(alice: Agent) -> None:
    code, text = await refusal(alice, "store_memory", content=SECRET, sensitive=True, visibility="public")
    assert (code, "public" in text) == ("invalid_argument", True)
    memory_id = await store_sensitive(alice)
    assert (await refusal(alice, "update_memory", memory_id=memory_id, visibility="public"))[0] == "invalid_argument"


async def test_duplicates_and_retries_work_for_sensitive_memories(alice: Agent) -> None:
    first = await alice.call("store_memory", content=SECRET, sensitive=True, idempotency_key="once")
    again = await alice.call("store_memory", content=SECRET, sensitive=True, idempotency_key="once")
    assert (again["memory_id"], again["replayed"]) == (first["memory_id"], True)
    assert (await refusal(alice, "store_memory", content="x", sensitive=True, idempotency_key="once"))[0] == "conflict"
    repeated = await alice.call("store_memory", content=SECRET, sensitive=True)
    assert repeated["duplicate_of"] == first["memory_id"]
    assert repeated["similar"] == []
    assert (await alice.call("store_memory", content=SECRET)).get("duplicate_of") is None


async def test_sidecar_seals_the_vector_of_an_unawaited_store(alice: Agent, stack: Stack, namespace: str) -> None:
    memory_id = await store_sensitive(alice, wait=False)
    await wait_until(lambda: is_ready(alice, memory_id))
    fields = await stack.client.hgetall(Keys(namespace).memory(memory_id))
    assert b"sealed_vec_minilm_l6_v2" in fields
    assert [hit["memory"]["memory_id"] for hit in await hits(alice)] == [memory_id]


async def test_long_sensitive_memory_is_found_by_any_chunk_and_read_whole(alice: Agent) -> None:
    content = prose(300) + FACT
    memory_id = await store_sensitive(alice, content, metadata={"pages": 30})

    async def settled() -> bool:
        return (await alice.call("memory_stats"))["vector_backlog"] == 0

    await wait_until(settled, 60)
    hit = (await hits(alice, "which number opens the safe in the cellar?"))[0]
    assert (hit["memory"]["memory_id"], hit["memory"]["metadata"]) == (memory_id, {"pages": 30})
    assert FACT in hit["memory"]["content"]
    assert hit["part"] == hit["memory"]["pieces"] - 1
    assert (await alice.call("retrieve_memory", memory_id=memory_id, max_tokens=0))["memory"]["content"] == content
    await alice.call("update_memory", memory_id=memory_id, content=prose(80, seed=8))
    await wait_until(settled, 60)
    assert all(FACT not in hit["memory"]["content"] for hit in await hits(alice, "the safe in the cellar"))


async def test_similar_memories_include_sensitive_ones(alice: Agent) -> None:
    clear = await alice.store("The safe on the wall is opened with a number.")
    hidden, other = (
        await store_sensitive(alice),
        await store_sensitive(alice, "The vault in the wall has the number 9134."),
    )
    for memory_id in (clear, hidden, other):
        found = (await alice.call("find_similar_memories", memory_id=memory_id))["hits"]
        assert {hit["memory"]["memory_id"] for hit in found} == {clear, hidden, other} - {memory_id}


async def test_standing_query_matches_a_sensitive_memory_for_its_readers(
    alice: Agent, bob: Agent, carol: Agent
) -> None:
    for name, agent in (("alice", alice), ("bob", bob), ("carol", carol)):
        await register(agent, name)
    memory_id = await store_sensitive(bob, "Nothing yet.")
    await share(bob, "alice", memory_ids=[memory_id])
    wanted: dict[str, Any] = {"kinds": ["match"], "query": "the vault behind the painting"}
    cursors = [(await agent.call("wait_for_events", timeout_seconds=0))["cursor"] for agent in (alice, carol)]
    waiting = asyncio.create_task(alice.call("wait_for_events", cursor=cursors[0], timeout_seconds=20, **wanted))
    await bob.call("update_memory", memory_id=memory_id, content=SECRET)
    assert [(event["id"], event["snippet"]) for event in (await waiting)["events"]] == [(memory_id, SECRET)]
    answer = await carol.call("wait_for_events", cursor=cursors[1], timeout_seconds=0, **wanted)
    assert answer["events"] == []


async def test_stats_batches_and_clear_include_sensitive_memories(alice: Agent) -> None:
    operations = [
        {"op": "store_memory", "content": SECRET, "sensitive": True, "wait": True},
        {"op": "store_memory", "content": "A clear one.", "wait": True},
        {"op": "semantic_search", "query": QUESTION},
    ]
    answer = await alice.call("batch_operations", operations=operations)
    assert answer["failed"] == 0
    assert answer["results"][2]["result"]["hits"][0]["memory"]["content"] == SECRET
    stats = await alice.call("memory_stats")
    assert (stats["total"], stats["vector_backlog"]) == (2, 0)
    ids = [result["result"]["memory_id"] for result in answer["results"][:2]]
    assert (await alice.call("clear_memory", memory_ids=ids, confirm=True))["deleted"] == 2
    assert await hits(alice) == []


async def test_altered_sensitive_memory_is_omitted_reported_and_refused(
    alice: Agent, stack: Stack, namespace: str
) -> None:
    sound, altered = await store_sensitive(alice), await store_sensitive(alice, "The cellar vault opens with 5050.")
    key = Keys(namespace).memory(altered)
    sealed = bytearray(await stack.client.hget(key, "sealed"))
    sealed[-1] ^= 1
    await stack.client.hset(key, "sealed", bytes(sealed))
    code, text = await refusal(alice, "retrieve_memory", memory_id=altered)
    assert code == "tampered"
    assert "5050" not in text
    for answer in (
        await alice.call("semantic_search", query=QUESTION),
        await alice.call("get_agent_memories"),
    ):
        found = answer.get("memories") or [hit["memory"] for hit in answer["hits"]]
        assert [memory["memory_id"] for memory in found] == [sound]
        assert answer["partial"]
        assert "integrity check" in answer["reason"]


async def test_sensitive_record_moved_to_another_owner_does_not_open(
    alice: Agent, bob: Agent, stack: Stack, server: Server, namespace: str
) -> None:
    victim, own = await store_sensitive(alice), await store_sensitive(bob, "Bob's own secret.")
    keys, client = Keys(namespace), stack.client
    taken = await client.hgetall(keys.memory(victim))
    bobs = await client.hgetall(keys.memory(own))
    for name in (b"sealed", b"sealed_vec_minilm_l6_v2", b"hash"):
        bobs[name] = taken[name]
    await client.hset(keys.memory(own), mapping=bobs)
    assert (await refusal(bob, "retrieve_memory", memory_id=own))[0] == "tampered"
    await client.hset(keys.memory(victim), mapping={"owner": bobs[b"owner"], "scope": bobs[b"scope"]})
    assert (await refusal(bob, "retrieve_memory", memory_id=victim))[0] == "tampered"
    other = f"{namespace}-other"
    async with server.agent("alice", other) as abroad:
        await abroad.store("Something.")
        there, owner = Keys(other), taken[b"owner"].decode()
        for source in (keys.data_key(owner), keys.owner(owner)):
            await client.hset(source.replace(namespace, other), mapping=await client.hgetall(source))
        await client.hset(there.agent("alice"), mapping={"owner": owner, "owners": owner})
        await client.hset(there.memory(victim), mapping=taken)
        assert (await refusal(abroad, "retrieve_memory", memory_id=victim))[0] == "tampered"
        await client.delete(there.memory(victim))


async def test_widening_the_scope_in_redis_shows_nothing_to_others(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    memory_id = await store_sensitive(alice)
    owner = (await stack.client.hget(Keys(namespace).agent("alice"), "owner")).decode()
    await stack.client.hset(
        Keys(namespace).memory(memory_id), mapping={"scope": f"o:{owner}\x1fpub", "visibility": "public"}
    )
    code, text = await refusal(bob, "retrieve_memory", memory_id=memory_id)
    assert code == "tampered"
    assert "9133" not in text
    assert await hits(bob) == []


async def test_all_vectors_are_compared_when_they_exceed_the_cache(stack: Stack, namespace: str) -> None:
    service_settings: dict[str, Any] = {
        "master_key": stack.server.runtime.settings.master_key,
        "cache": {"sealed_bytes": 3 * 4 * 384},
    }
    async with (
        serving(stack.redis.url_of(SERVER), **service_settings) as small,
        small.agent("alice", namespace) as alice,
    ):
        texts = [f"Box number {number} is opened with {number * 7}." for number in range(12)]
        for text in texts:
            await store_sensitive(alice, text)
        answer: dict[str, Any] = {}
        for _ in range(2):
            answer = await alice.call("semantic_search", query="boxes", mode="vector", limit=12)
            assert {hit["memory"]["content"] for hit in answer["hits"]} == set(texts)
            assert not answer["partial"]
        held = small.service.vault.vectors
        assert 0 < held.bytes <= 3 * 4 * 384
        caller = Caller("alice", namespace)
        vectors = await small.service.embeddings.embed(["boxes", texts[5]], caller)
        score = next(hit["score"] for hit in answer["hits"] if hit["memory"]["content"] == texts[5])
        assert score == pytest.approx(cosine(vectors[0], vectors[1]), abs=1e-3)


async def test_without_master_key_every_call_on_sealed_memories_is_refused(
    alice: Agent, stack: Stack, namespace: str
) -> None:
    memory_id, _ = await store_sensitive(alice), await alice.store("A clear one.")
    async with serving(stack.redis.url_of(SERVER)) as keyless, keyless.agent("alice", namespace) as agent:
        for tool, arguments in (
            ("store_memory", {"content": "x9133x", "sensitive": True}),
            ("retrieve_memory", {"memory_id": memory_id}),
            ("semantic_search", {"query": QUESTION}),
            ("get_agent_memories", {}),
        ):
            code, text = await refusal(agent, tool, **arguments)
            assert code == "key_missing", tool
            assert "MEMORY_MASTER_KEY" in text
    assert (await alice.call("memory_stats"))["total"] == 2


async def test_sealed_bytes_that_are_no_vector_count_as_altered(alice: Agent, stack: Stack, namespace: str) -> None:
    memory_id = await store_sensitive(alice)
    await stack.client.hdel(Keys(namespace).memory(memory_id), "sealed_vec_minilm_l6_v2")
    answer = await alice.call("semantic_search", query=QUESTION, mode="vector")
    assert (answer["hits"], answer["partial"]) == ([], True)


async def test_racing_servers_create_one_key_per_owner(stack: Stack, namespace: str) -> None:
    vaults = [stack.server.service.vault]
    async with (
        serving(stack.redis.url_of(SERVER), master_key=stack.server.runtime.settings.master_key) as other,
        other.agent("alice", namespace) as agent,
    ):
        await agent.store("Something.")
        vaults.append(other.service.vault)
        owner = (await stack.client.hget(Keys(namespace).agent("alice"), "owner")).decode()
        keys = await asyncio.gather(*(vault.current(namespace, owner) for vault in vaults * 5))
    assert len(set(keys)) == 1
    assert await stack.client.hlen(Keys(namespace).data_key(owner)) == 2


async def test_texts_travel_sealed_and_the_redis_cache_reveals_nothing(
    alice: Agent, stack: Stack, namespace: str
) -> None:
    text = "an ordinary question about lighthouses"
    await alice.call("semantic_search", query=text)
    vector = (await stack.server.service.embeddings.embed([text], Caller("alice", namespace)))[0]
    cached = [key async for key in stack.client.scan_iter(f"rm:{{{namespace}}}:emb:*")]
    await alice.store("Something so that there is something to search.")
    await alice.call("semantic_search", query=text)
    cached = [key async for key in stack.client.scan_iter(f"rm:{{{namespace}}}:emb:*")]
    assert cached
    for key in cached:
        values = await stack.client.hvals(key)
        assert values
        for form in ("<f2", "<f4"):
            assert np.asarray(vector, dtype=form).tobytes() not in b"".join(values)
    for lane in range(2):
        for _, fields in await stack.client.xrange(f"rm:asks:{{{lane}}}"):
            assert text not in str(unpack(fields[b"body"]) if not fields[b"seal"] else "")
