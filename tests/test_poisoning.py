"""Hostile vectors and floods of text by one agent change nothing of what another finds among its own memories."""

from __future__ import annotations

import pytest
from benchmarks.poisoning import MODES, QUERIES, ask, fill, honest, hostile, query_vectors, recall
from stack import Server

from memory_core.records import Visibility
from memory_server.usecases.principals import Caller
from memory_server.usecases.quarantine import quarantine


@pytest.mark.parametrize("flood", [600])
async def test_a_private_flood_changes_no_answer_and_a_public_one_none_after_quarantine(
    server: Server, namespace: str, flood: int
) -> None:
    service, alice, bob = server.service, Caller(namespace, "alice"), Caller(namespace, "bob")
    queries = await query_vectors(service, alice)
    await fill(service, alice, honest(queries, 900), Visibility.PRIVATE)
    before = {mode: [seen.hits for seen in await ask(service, alice, mode)] for mode in MODES}
    assert all(len(hits) == 10 for answers in before.values() for hits in answers)
    await fill(service, bob, hostile(queries, flood), Visibility.PRIVATE)
    for mode in MODES:
        assert [seen.hits for seen in await ask(service, alice, mode)] == before[mode], mode
    await fill(service, bob, hostile(queries, 20 * len(QUERIES), seed=3), Visibility.PUBLIC)
    flooded = await ask(service, alice, MODES[0])
    assert recall(list(flooded), flooded) == 1.0
    assert all(set(seen.hits).isdisjoint(old) for seen, old in zip(flooded, before[MODES[0]], strict=True))
    await quarantine(service.backend, namespace, "bob", 0.0)
    for mode in MODES:
        assert [seen.hits for seen in await ask(service, alice, mode)] == before[mode], mode
