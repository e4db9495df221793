"""Hostile vectors and floods of text by one agent do not change what another finds among its own memories."""

from __future__ import annotations

from benchmarks.poisoning import (
    MODES,
    QUERIES,
    WORD_QUERIES,
    ask,
    fill,
    flood_of_words,
    honest,
    hostile,
    query_vectors,
    wordy,
)
from support.stack import Server

from memory_core.records.memory import Visibility
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.operations.quarantine import quarantine


async def test_private_or_quarantined_vector_flood_changes_no_answer(server: Server, namespace: str) -> None:
    service = server.service
    alice, bob = (RequestContext(Caller(namespace, name)) for name in ("alice", "bob"))
    queries = await query_vectors(service, alice)
    await fill(service, alice, honest(queries, 400), Visibility.PRIVATE)
    before = {mode: [seen.hits for seen in await ask(service, alice, mode)] for mode in MODES}
    assert all(len(hits) == 10 for answers in before.values() for hits in answers)
    await fill(service, bob, hostile(queries, 400), Visibility.PRIVATE)
    for mode in MODES:
        assert [seen.hits for seen in await ask(service, alice, mode)] == before[mode], mode
    await fill(service, bob, hostile(queries, 12 * len(QUERIES), seed=3), Visibility.PUBLIC)
    flooded = await ask(service, alice, "vector")
    assert all(set(seen.hits).isdisjoint(old) for seen, old in zip(flooded, before["vector"], strict=True))
    await quarantine(service.backend, namespace, "bob", 0.0)
    for mode in MODES:
        assert [seen.hits for seen in await ask(service, alice, mode)] == before[mode], mode


async def test_flood_of_common_words_changes_no_answer_of_another_agent(server: Server, namespace: str) -> None:
    service = server.service
    alice, bob = (RequestContext(Caller(namespace, name)) for name in ("alice", "bob"))
    vector = (await query_vectors(service, alice))[0]
    await fill(service, alice, wordy(vector, 700), Visibility.PRIVATE)
    before = [seen.hits for seen in await ask(service, alice, "keyword", WORD_QUERIES)]
    await fill(service, bob, flood_of_words(vector, 300), Visibility.PRIVATE)
    assert [seen.hits for seen in await ask(service, alice, "keyword", WORD_QUERIES)] == before
