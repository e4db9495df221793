"""Finding memories by meaning and by words, over MCP on the real stack."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from support.stack import Agent, Refused, Stack

from memory_core.records.keys import Keys, vector_field
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.contract import tokens

FACTS = {
    "The cat sleeps on the warm windowsill every afternoon.": {"tags": ["pets"], "source": "Ann"},
    "Our database password rotates on the first Monday.": {"tags": ["ops"], "source": "Bo"},
    "Paris is where the two of them first met.": {"tags": ["love"], "source": "Ann"},
    "Die Straße zum Café führt über die Brücke.": {"tags": ["german"], "source": "Cy"},
    "parse_config_file raises ValueError on empty input.": {"tags": ["code"], "source": "repo"},
    "東京の会議は来週の火曜日です。": {"tags": ["japan"], "source": "Dai"},
    "Встреча перенесена на среду утром.": {"tags": ["russian"], "source": "Ed"},
}


@pytest.fixture
async def facts(alice: Agent) -> Agent:
    """Alice with some facts stored."""
    for content, options in FACTS.items():
        await alice.store(content, **options)
    return alice


async def test_vector_search_finds_what_keywords_miss(facts: Agent) -> None:
    found = await facts.search("a feline taking a nap", mode="vector", limit=1)
    assert found == ["The cat sleeps on the warm windowsill every afternoon."]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sleeping cats", "The cat sleeps on the warm windowsill every afternoon."),
        ("PASSWORD rotation!", "Our database password rotates on the first Monday."),
        ("strasse cafe", "Die Straße zum Café führt über die Brücke."),
        ("STRASSE BRÜCKE", "Die Straße zum Café führt über die Brücke."),
        ("config", "parse_config_file raises ValueError on empty input."),
        ("value error", "parse_config_file raises ValueError on empty input."),
        ("parse_config_file", "parse_config_file raises ValueError on empty input."),
        ("会議", "東京の会議は来週の火曜日です。"),
        ("ВСТРЕЧА", "Встреча перенесена на среду утром."),
        ("dai", "東京の会議は来週の火曜日です。"),
    ],
)
async def test_words_are_found_in_other_forms_and_scripts(facts: Agent, query: str, expected: str) -> None:
    assert (await facts.search(query, mode="keyword"))[0] == expected


TALK = [
    ("Ann", "Hi there, how was your week?"),
    ("Bo", "Busy. And you, did you find a new flat in Lisbon?"),
    ("Ann", "Yes! The one with the green door, I move in soon."),
    ("Bo", "Lovely, I am happy for you."),
    ("Ann", "I also bought a bicycle."),
    ("Bo", "I bought a bicycle too, years ago."),
]


@pytest.fixture
async def talk(alice: Agent) -> Agent:
    """Alice with a conversation stored, and the same answer outside it."""
    for source, content in TALK:
        await alice.store(content, source=source, context="talk", occurred_at="2025-03-04")
    await alice.store("Nobody told me about that, I think.", context="elsewhere", occurred_at="2024-07-01")
    return alice


async def test_answer_is_found_by_the_words_of_its_question(talk: Agent) -> None:
    found = await talk.search("flat in Lisbon", limit=2)
    assert set(found) == {TALK[1][1], TALK[2][1]}
    assert "green door" not in (await talk.search("flat in Lisbon", mode="keyword"))[0]


async def test_neighbours_of_the_best_hits_are_fetched(talk: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_server.search.search.DEPTH", 1)
    found = await talk.search("Lisbon", limit=1)
    assert found == [TALK[1][1]]
    assert TALK[2][1] in await talk.search("Lisbon", limit=2)


async def test_neighbours_obey_filters_and_permissions(talk: Agent, bob: Agent) -> None:
    await bob.store("I dream of a flat in Lisbon.", context="talk", visibility="public")
    assert await bob.search("flat in Lisbon") == ["I dream of a flat in Lisbon."]
    assert all("green door" not in content for content in await talk.search("flat in Lisbon", source="Bo"))


async def test_source_named_in_the_query_ranks_first(talk: Agent) -> None:
    assert (await talk.search("Did Ann buy a bicycle?"))[0] == "I also bought a bicycle."
    assert (await talk.search("Did Bo buy a bicycle?"))[0] == "I bought a bicycle too, years ago."


async def test_unreadable_sources_do_not_change_how_a_query_is_parsed(alice: Agent, bob: Agent) -> None:
    await alice.store("The lighthouse keeper paints ships.", context="notes", source="diary")
    before = (await alice.call("semantic_search", query="lighthouse keeper"))["hits"]
    await bob.store("I tend the lamp.", source="lighthouse keeper")
    assert (await alice.call("semantic_search", query="lighthouse keeper"))["hits"] == before


async def test_time_named_in_the_query_affects_ranking(alice: Agent) -> None:
    for month in (3, 4, 5):
        await alice.store(f"The team met in room {month}.", occurred_at=f"2025-0{month}-12")
    assert (await alice.search("Where did the team meet in April 2025?"))[0] == "The team met in room 4."


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
async def test_scores_are_between_zero_and_one_and_descending(facts: Agent, mode: str) -> None:
    hits = (await facts.call("semantic_search", query="where did they meet in Paris", mode=mode))["hits"]
    scores = [hit["score"] for hit in hits]
    assert hits[0]["memory"]["content"] == "Paris is where the two of them first met."
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 for score in scores)
    assert ("vector_score" in hits[0]) is (mode != "keyword")
    assert ("keyword_score" in hits[0]) is (mode != "vector")


async def test_search_reports_the_duration_of_each_stage(facts: Agent) -> None:
    took = (await facts.call("semantic_search", query="database"))["took_ms"]
    assert took["embed"] > 0
    assert took["search"] > 0
    assert took["total"] >= took["embed"] + took["search"]


async def test_filters_narrow_a_search(facts: Agent) -> None:
    assert len(await facts.search("the", tags=["pets", "love"])) == 2
    assert await facts.search("where", tags=["pets", "love"], tag_match="all") == []
    assert set(await facts.search("the", source="Ann")) == {
        "The cat sleeps on the warm windowsill every afternoon.",
        "Paris is where the two of them first met.",
    }
    assert await facts.search("the", context="nowhere") == []
    assert await facts.search("the", since="tomorrow") == []
    assert await facts.search("the", agent_ids=["nobody"]) == []


async def test_minimum_score_and_limit_shorten_the_answer(facts: Agent) -> None:
    assert len(await facts.search("cat", limit=1)) == 1
    assert await facts.search("cat", min_score=0.99) == []


async def test_token_budget_keeps_the_best_hits_that_fit(facts: Agent) -> None:
    query = {"query": "the cat and the database in Paris", "mode": "vector"}
    everything = await facts.search(**query)
    answer = await facts.call("semantic_search", **query, max_tokens=700)
    some = [hit["memory"]["content"] for hit in answer["hits"]]
    assert 0 < len(some) < len(everything)
    assert some == [content for content in everything if content in some]
    assert some[0] == everything[0]
    assert tokens.count(json.dumps(answer)) <= 700
    assert answer["partial"]
    assert "did not fit into max_tokens" in answer["reason"]


async def test_best_hit_over_the_budget_does_not_hide_the_others(alice: Agent) -> None:
    await alice.store("The heron fishes by the reeds, by the heron pond, where herons always fish. " * 9)
    await alice.store("A heron flew.")
    answer = await alice.call("semantic_search", query="heron", max_tokens=450)
    assert [hit["memory"]["content"] for hit in answer["hits"]] == ["A heron flew."]
    assert answer["partial"]


async def test_recency_weight_prefers_the_new(alice: Agent) -> None:
    await alice.store("The build is red because of the linter.", occurred_at="60 days ago")
    await alice.store("The build is red because of the compiler, it seems.")
    query = "why is the build red because of the linter"
    assert (await alice.search(query))[0] == "The build is red because of the linter."
    assert (await alice.search(query, recency_weight=0.9))[0].endswith("it seems.")


async def test_priority_weight_prefers_the_important(alice: Agent) -> None:
    await alice.store("The bridge closes at nine.", priority="low")
    await alice.store("The bridge closes at ten or so, says the plan.", priority="critical")
    query = "when does the bridge close at nine"
    assert (await alice.search(query))[0] == "The bridge closes at nine."
    assert (await alice.search(query, priority_weight=0.8))[0].startswith("The bridge closes at ten")
    with pytest.raises(Refused):
        await alice.search(query, priority_weight=0.8, recency_weight=0.8)


async def test_rare_word_weighs_more_than_a_common_one(alice: Agent) -> None:
    for number in range(30):
        await alice.store(f"report {number} on the quarterly figures", wait=False)
    await alice.store("report on the zeppelin", wait=False)
    assert (await alice.search("quarterly zeppelin", mode="keyword"))[0] == "report on the zeppelin"


async def test_reindexing_does_not_distort_word_weights(alice: Agent) -> None:
    """Each update leaves a dead posting behind; the engine's own document frequencies would underflow."""
    ids = [await alice.store(f"Caroline spoke about topic{number}", wait=False) for number in range(20)]
    await alice.store("Melanie spoke about the lighthouse", wait=False)
    for memory_id in ids:
        await alice.call("update_memory", memory_id=memory_id, tags=["again"])
    assert (await alice.search("caroline lighthouse", mode="keyword"))[0] == "Melanie spoke about the lighthouse"


async def test_private_writes_of_others_do_not_change_scores(alice: Agent, bob: Agent) -> None:
    await alice.store("The red boat sails at dawn.")
    await alice.store("A blue boat stays in the harbour.")
    before = (await alice.call("semantic_search", query="red boat"))["hits"]
    for number in range(20):
        await bob.store(f"red boat red boat {number}")
    assert (await alice.call("semantic_search", query="red boat"))["hits"] == before


async def test_expired_memories_do_not_displace_living_ones(alice: Agent) -> None:
    await asyncio.gather(*(alice.store(f"meeting notes {n}", ttl_seconds=1, wait=True) for n in range(6)))
    kept = {f"meeting notes about plan {n}" for n in range(10)}
    for content in sorted(kept):
        await alice.store(content)
    async with asyncio.timeout(10):
        while set(found := await alice.search("meeting notes", limit=10)) != kept:
            assert len(found) == 10
            await asyncio.sleep(0.05)


async def test_similar_memories_exclude_the_memory_itself(facts: Agent) -> None:
    first = await facts.call("store_memory", content="A cat naps in the sun by the window.")
    assert first["similar"][0]["content"] == "The cat sleeps on the warm windowsill every afternoon."
    for exact in (False, True):
        answer = await facts.call("find_similar_memories", memory_id=first["memory_id"], limit=3, exact=exact)
        found = [hit["memory"]["memory_id"] for hit in answer["hits"]]
        assert len(found) == 3
        assert first["memory_id"] not in found
        assert answer["hits"][0]["memory"]["content"].startswith("The cat sleeps")


async def test_memory_without_a_vector_is_found_by_keywords_as_partial(
    alice: Agent, stack: Stack, namespace: str
) -> None:
    memory_id = await alice.store("Zanzibar trip")
    key = Keys(namespace).memory(memory_id)
    await stack.client.hdel(key, vector_field("all-MiniLM-L6-v2"))
    await stack.client.hset(key, "model", f"none:{vector_field(DEFAULT_MODEL)}")
    answer = await alice.call("semantic_search", query="zanzibar")
    assert [hit["memory"]["content"] for hit in answer["hits"]] == ["Zanzibar trip"]
    assert answer["partial"]
    assert "1 text still waits" in answer["reason"]
    with pytest.raises(Refused) as refused:
        await alice.call("find_similar_memories", memory_id=memory_id)
    assert refused.value.code == "embedding_unavailable"


@pytest.mark.parametrize(
    "query",
    [
        '"quoted phrase',
        "a | b -c ~d",
        "@scope:{pub}",
        "*",
        "%%%",
        "( ",
        "$p0",
        "…",
        "!?",
        "and the of",
        "x" * 10_000,
        "word " * 2000,
    ],
    ids=lambda query: str(query)[:12],
)
async def test_any_text_is_a_valid_query(facts: Agent, query: str) -> None:
    answer = await facts.call("semantic_search", query=query)
    assert not answer["partial"], answer.get("reason")


async def test_stats_count_only_readable_memories(alice: Agent, bob: Agent) -> None:
    await alice.store("one", memory_type="code", priority="high")
    await alice.store("two", visibility="public")
    await bob.store("three")
    stats: dict[str, Any] = await alice.call("memory_stats", since="1 hour ago")
    assert (stats["total"], stats["own"], stats["created_since"]) == (2, 2, 2)
    assert stats["by_type"] == {"code": 1, "context": 1}
    assert stats["by_priority"] == {"high": 1, "medium": 1}
    assert stats["by_visibility"] == {"private": 1, "public": 1}
    assert stats["by_agent"] == {"alice": 2}
    assert stats["retention"] == {"never": 0, "within_day": 0, "within_week": 0, "expired": 0}
    assert stats["bytes_estimate"] > 2 * 1536
    assert stats["index"] == {"progress": 1.0, "failures": 0, "model": "all-MiniLM-L6-v2", "dimension": 384}
    theirs = await bob.call("memory_stats")
    assert (theirs["total"], theirs["own"], theirs["by_agent"]) == (2, 1, {"alice": 1, "bob": 1})


async def test_gpu_status_shows_the_sidecar(alice: Agent) -> None:
    status = await alice.call("gpu_status")
    (sidecar,) = status["sidecars"]
    assert sidecar["state"] == "ready"
    assert sidecar["model"] == "all-MiniLM-L6-v2"
    assert sidecar["device"] == "cpu"
    assert sidecar["backend"] in {"onnx", "openvino"}
    assert "chosen by a trial: " in sidecar["provider"]
    assert sidecar["texts_total"] > 0
    assert status["libraries"]["onnxruntime"] is True


async def test_record_of_an_unknown_type_is_skipped(alice: Agent, bob: Agent, stack: Stack, namespace: str) -> None:
    """A newer release may write types that this one does not know."""
    strange = await alice.store("The comet comes in May.", visibility="public")
    await alice.store("The comet is bright.", visibility="public")
    await stack.client.hset(Keys(namespace).memory(strange), "type", "hologram")
    assert await bob.search("comet") == ["The comet is bright."]


async def test_search_with_a_short_deadline_answers_by_keywords(alice: Agent) -> None:
    await alice.store("The kettle whistles.")
    answer = await alice.call("semantic_search", query="kettle that nobody asked for before", deadline_ms=1)
    assert answer["partial"]
    assert "by words only" in answer["reason"]
