"""Contents longer than the model's window are chunked; every chunk is searchable and the body is returned unchanged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.embedder_fixtures import wait_until
from support.long_content import FACT, pieces_in_redis, prose, settled
from support.stack import Agent, Refused, Server, Stack

from memory_core.records.keys import Keys, vector_field
from memory_core.records.memory import compress, decompress
from memory_core.store import functions
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.index import loader
from memory_server.memories.chunks import ChunkedContent, settle
from memory_server.memories.splitter import PIECE_TOKENS, split
from memory_server.operations.sweeper import sweep


async def test_fact_in_the_last_sentence_of_100_kb_is_found_in_every_mode(alice: Agent) -> None:
    content = prose(1550) + FACT
    assert len(content) > 100_000
    stored = await alice.call("store_memory", content=content, memory_type="document", source="diary.md")
    await alice.store("Something short about boats.")
    await wait_until(lambda: settled(alice), 60)
    for mode in ("keyword", "vector", "hybrid"):
        answer = await alice.call("semantic_search", query="which number opens the safe in the cellar?", mode=mode)
        hit = answer["hits"][0]
        assert hit["memory"]["memory_id"] == stored["memory_id"], mode
        assert hit["part"] == hit["memory"]["pieces"] - 1
        assert FACT in hit["memory"]["content"]
        ids = [hit["memory"]["memory_id"] for hit in answer["hits"]]
        assert len(ids) == len(set(ids))
    whole = (await alice.call("retrieve_memory", memory_id=stored["memory_id"], max_tokens=0))["memory"]
    assert whole["content"] == content
    assert (await alice.call("memory_stats"))["total"] == 2


async def test_supplied_vector_applies_to_every_chunk(alice: Agent) -> None:
    content = prose(60) + FACT
    given = [1.0] + [0.0] * 383
    stored = await alice.call("store_memory", content=content, memory_type="embedding", vector=given)
    assert stored["vector"] == "ready"
    hits = (await alice.call("semantic_search", query="which number opens the safe?", mode="keyword"))["hits"]
    assert [hit["memory"]["memory_id"] for hit in hits] == [stored["memory_id"]]
    assert (await alice.call("memory_stats"))["vector_backlog"] == 0


async def test_few_chunks_have_vectors_when_the_store_returns(alice: Agent) -> None:
    stored = await alice.call("store_memory", content=prose(60) + FACT)
    assert stored["vector"] == "ready"
    assert (await alice.call("memory_stats"))["vector_backlog"] == 0
    hits = (await alice.call("semantic_search", query="number of the safe", mode="vector"))["hits"]
    assert FACT in hits[0]["memory"]["content"]


async def test_update_to_shorter_content_removes_surplus_chunks(alice: Agent, stack: Stack, namespace: str) -> None:
    memory_id = await alice.store(prose(300) + FACT)
    await alice.call("update_memory", memory_id=memory_id, content=prose(80, seed=8))
    assert await alice.search("safe cellar 4711", mode="keyword") == []
    left = await pieces_in_redis(stack, namespace)
    memory = (await alice.call("retrieve_memory", memory_id=memory_id))["memory"]
    assert left == {f"{memory_id}:{number}" for number in range(1, memory["pieces"])}
    await alice.call("update_memory", memory_id=memory_id, content="Short now.")
    assert await pieces_in_redis(stack, namespace) == set()
    memory = (await alice.call("retrieve_memory", memory_id=memory_id))["memory"]
    assert (memory["content"], memory["pieces"]) == ("Short now.", 1)
    assert await stack.client.zcard(Keys(namespace).chores) == 0


async def test_changed_filter_field_reaches_every_chunk(alice: Agent, bob: Agent) -> None:
    memory_id = await alice.store(prose(120) + FACT, tags=["old"], context="then")
    assert await bob.search("safe cellar 4711", mode="keyword") == []
    await alice.call("update_memory", memory_id=memory_id, tags=["new"], context="", visibility="public")
    (found,) = await bob.search("safe cellar 4711", mode="keyword", tags=["new"])
    assert FACT in found
    assert await bob.search("safe cellar 4711", mode="keyword", tags=["old"]) == []
    assert await bob.search("safe cellar 4711", mode="keyword", context="then") == []
    await alice.call("update_memory", memory_id=memory_id, visibility="private")
    assert await bob.search("safe cellar 4711", mode="keyword") == []


async def test_outdated_chunk_follows_the_permission_of_its_memory(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    """Simulates a server that died after changing the memory and before its chunks."""
    memory_id = await alice.store(prose(120) + FACT, visibility="public")
    assert await bob.search("safe cellar 4711", mode="keyword")
    key = Keys(namespace).memory(memory_id)
    scope = (await stack.client.hget(key, "scope")).decode().split("\x1f")
    await stack.client.hset(key, "scope", "\x1f".join(token for token in scope if token != "pub"))
    assert await bob.search("safe cellar 4711", mode="keyword") == []


async def test_deleting_a_long_memory_deletes_all_its_chunks(alice: Agent, stack: Stack, namespace: str) -> None:
    memory_id = await alice.store(prose(300) + FACT)
    assert await pieces_in_redis(stack, namespace)
    await alice.call("clear_memory", memory_ids=[memory_id])
    assert await pieces_in_redis(stack, namespace) == set()
    assert await alice.search("safe cellar 4711") == []
    assert await stack.client.zcard(Keys(namespace).chores) == 0


async def test_late_cleanup_keeps_the_chunks_of_newer_content(
    alice: Agent, server: Server, stack: Stack, namespace: str
) -> None:
    """Two updates cross: the one that shortened the content cleans up after the other has made it long again."""
    memory_id = await alice.store("short")
    service = await server.runtime.service()
    keys = Keys(namespace)
    short = await loader.load(stack.client, keys, [loader.Ref(memory_id)], service.backend.integrity, whole=True)
    await alice.call("update_memory", memory_id=memory_id, content=prose(200) + FACT)
    there = await pieces_in_redis(stack, namespace)
    answer = await functions.call(
        stack.client,
        "rm1_settled",
        [keys.chores, keys.memory(memory_id), keys.chunk(memory_id, 1)],
        hash=short[0].content_hash,
        rev=short[0].rev,
        chore=f"{memory_id}:5",
        done=True,
    )
    assert answer == {"status": "stale"}
    await settle(service, namespace, f"{memory_id}:5")
    assert await pieces_in_redis(stack, namespace) == there
    assert len(there) > 5


async def test_settling_an_outdated_record_loads_the_current_one(
    alice: Agent, server: Server, stack: Stack, namespace: str
) -> None:
    """A store hands its record on, but another writer may change the memory before its chunks are settled."""
    memory_id = await alice.store(prose(60) + FACT)
    service, keys = await server.runtime.service(), Keys(namespace)
    (old,) = await loader.load(stack.client, keys, [loader.Ref(memory_id)], service.backend.integrity, whole=True)
    await alice.call("update_memory", memory_id=memory_id, content=prose(200) + FACT)
    current = await pieces_in_redis(stack, namespace)
    model = await service.models.current(namespace)
    content = ChunkedContent(old.content, split(old.content), model, record=old)
    await settle(service, namespace, f"{memory_id}:{len(current) + 1}", content)
    assert await pieces_in_redis(stack, namespace) == current
    last = await stack.client.hget(keys.chunk(memory_id, len(current)), "content")
    assert last.decode() == split(prose(200) + FACT)[-1]


async def test_sweeper_finishes_the_chunk_updates_of_a_dead_server(
    alice: Agent, server: Server, stack: Stack, namespace: str
) -> None:
    memory_id = await alice.store(prose(120) + FACT)
    keys, there = Keys(namespace), await pieces_in_redis(stack, namespace)
    await stack.client.delete(*(keys.chunk_prefix + name for name in there))
    await stack.client.zadd(keys.chores, {f"{memory_id}:{len(there) + 1}": 1})
    await sweep(await server.runtime.service(), patience=0)
    assert await pieces_in_redis(stack, namespace) == there
    await wait_until(lambda: settled(alice))
    assert FACT in (await alice.search("number of the safe", mode="vector"))[0]


async def test_sweeper_requeues_missing_vectors(alice: Agent, server: Server, stack: Stack, namespace: str) -> None:
    memory_id = await alice.store("Nobody remembers my vector.")
    key = Keys(namespace).memory(memory_id)
    await stack.client.hdel(key, vector_field("all-MiniLM-L6-v2"))
    await stack.client.hset(key, "model", f"none:{vector_field(DEFAULT_MODEL)}")
    await sweep(await server.runtime.service(), patience=0)
    await wait_until(lambda: settled(alice))
    assert await stack.client.hget(key, "model") == vector_field(DEFAULT_MODEL).encode()


async def test_chunks_expire_with_their_memory(alice: Agent, stack: Stack, namespace: str) -> None:
    memory_id = await alice.store(prose(120), ttl_seconds=1000)
    keys = Keys(namespace)
    ours = await stack.client.pttl(keys.memory(memory_id))
    assert abs(await stack.client.pttl(keys.chunk(memory_id, 1)) - ours) < 5000


async def test_long_memory_is_listed_and_counted_once(alice: Agent) -> None:
    await alice.store(prose(200), wait=False)
    await alice.store("short", wait=False)
    listed = await alice.call("get_agent_memories")
    assert listed["total"] == 2
    assert [memory["pieces"] > 1 for memory in listed["memories"]] == [False, True]
    assert (await alice.call("clear_memory", memory_types=["context"], dry_run=True))["matched"] == 2


async def test_largest_content_is_returned_unchanged_and_larger_is_refused(alice: Agent) -> None:
    content = ("é" + prose(16_000))[: 1 << 20]
    content = content.encode()[: 1 << 20].decode(errors="ignore")
    memory_id = await alice.store(content, wait=False, priority="low")
    assert (await alice.call("retrieve_memory", memory_id=memory_id, max_tokens=0))["memory"]["content"] == content
    with pytest.raises(Refused):
        await alice.store(content + "xx")
    await alice.call("clear_memory", memory_ids=[memory_id])


@pytest.mark.parametrize(
    "content",
    ["x" * 60_000, "word " * 20_000, "日本語の文章です。" * 5000, "def f(x):\n    return x\n\n" * 3000, "🫨" * 30_000],
    ids=["one word", "no sentences", "no spaces", "code", "emoji"],
)
def test_chunks_of_any_long_text_cover_it(content: str) -> None:
    pieces = split(content)
    assert len(pieces) > 1
    assert covered(content, pieces)
    assert max(map(len, pieces)) <= 8 * PIECE_TOKENS


def test_code_blocks_and_sentences_stay_together() -> None:
    block = "```python\n" + "".join(f"value_{n} = compute({n})\n" for n in range(12)) + "```\n"
    pieces = split(f"{prose(30)}\n\n{block}\n\n{prose(30)}")
    assert any(block.strip() in piece for piece in pieces)


@given(st.text(max_size=3000), st.integers(1, 40))
def test_splitting_loses_nothing(text: str, times: int) -> None:
    content = text * times
    assert covered(content, split(content))


@given(st.text())
def test_bodies_survive_compression(text: str) -> None:
    encodable = text.encode(errors="ignore").decode()
    assert decompress(compress(encodable)) == encodable


def covered(content: str, pieces: list[Any]) -> bool:
    """Whether the chunks, in order and possibly overlapping, contain everything except blanks."""
    position = 0
    for piece in pieces:
        blanks = len(content[position:]) - len(content[position:].lstrip())
        start = content.rfind(piece, 0, position + blanks + len(piece))
        if start < 0:
            return False
        position = max(position, start + len(piece))
    return not content[position:].strip()
