"""Nothing in Redis grows forever: churn leaves only keys that expire, and docs/inside.md says how each kind ends."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from support.churn import team
from support.key_kinds import global_kinds, kinds
from support.stack import Stack

from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, normalise, to_stored
from memory_core.settings.settings import CacheSettings
from memory_server.engine.request_context import Caller
from memory_server.engine.sidecars.vector_cache import VectorCache

ROUNDS = 4
MODEL = Model("all-MiniLM-L6-v2", 384)
AGENTS_CACHED = 200
DOCS = (Path(__file__).parents[2] / "docs/inside.md").read_text()
ENDINGS = {"expires", "removed", "trimmed", "fixed"}
UNSEEN = {"avoided:", "chores", "damaged", "jobs:dead", "mark", "sealer", "unsettled"}
"""Kinds that Redis has only for moments, or after failures."""


def unit_vectors(number: int) -> Matrix:
    """Return random unit vectors."""
    return normalise(
        np.random.default_rng(7).normal(size=(number, MODEL.dimension)).astype(np.float32), MODEL.dimension
    )


def rows() -> dict[str, str]:
    """Return the tables of docs/inside.md: how each kind of key ends."""
    return {kind: f"{holds}|{end}" for kind, holds, end in re.findall(r"^\| `([^`]+)` \| (.+) \| (.+) \|$", DOCS, re.M)}


def ending(row: str) -> str:
    """Return the word that begins the last column."""
    return re.split(r"\W", row.partition("|")[2])[0]


def limit(row: str) -> int | None:
    """Return the most entries of one key; None without a limit."""
    found = re.search(r"at most ([\d,]+)", row)
    return int(found[1].replace(",", "")) if found else None


def test_documentation_says_how_each_kind_of_key_ends() -> None:
    assert set(rows()) == {*kinds(), *global_kinds()}
    assert {ending(row) for row in rows().values()} == ENDINGS


@pytest.mark.long
async def test_churn_leaves_only_what_expires(stack: Stack, namespace: str) -> None:
    async with team(stack, namespace) as churn:
        await churn.round()
        before = await churn.left()
        for _ in range(ROUNDS):
            await churn.round()
        after = await churn.left()
        seen = churn.seen
    assert seen.kinds | UNSEEN == set(kinds())
    trimmed, expiring = ({kind for kind, row in rows().items() if ending(row) == how} for how in ("trimmed", "expires"))
    assert {kind: more for kind, more in (after.entries - before.entries).items() if kind not in trimmed} == {}
    assert expiring & set(seen.entries) == set(), "a key that has no expiry"
    for kind, row in rows().items():
        assert seen.longest[kind] <= (limit(row) or math.inf), kind


async def test_cached_vectors_of_one_agent_are_bounded_and_small(stack: Stack, namespace: str) -> None:
    settings, caller = CacheSettings(redis_entries=50), Caller(namespace, "alice")
    vectors = {f"question {number}": to_stored(row, MODEL) for number, row in enumerate(unit_vectors(500))}
    cache, key = (
        VectorCache(stack.server.service.backend, settings),
        Keys(namespace).cached_vectors(MODEL.field, "alice"),
    )
    for text, vector in vectors.items():
        await cache.put(caller, {text: vector}, MODEL)
    await cache.put(caller, vectors, MODEL)
    assert await stack.client.hlen(key) == 50
    assert await stack.client.memory_usage(key, samples=0) < 50 * 1000
    assert 0 < await stack.client.ttl(key) <= settings.redis_ttl_seconds
    fresh = VectorCache(stack.server.service.backend, settings)
    found = await fresh.get(caller, list(vectors), MODEL)
    assert len(found) == 50
    for text, vector in found.items():
        assert vector == vectors[text]


async def test_cached_vectors_of_many_agents_are_bounded(stack: Stack, namespace: str) -> None:
    cache, (row,) = VectorCache(stack.server.service.backend, CacheSettings()), unit_vectors(1)
    for number in range(AGENTS_CACHED + 10):
        await cache.put(Caller(namespace, f"agent-{number}"), {"a question": to_stored(row, MODEL)}, MODEL)
    keys = Keys(namespace)
    cached = [key async for key in stack.client.scan_iter(f"{keys.cached_vectors(MODEL.field, '')}*", count=1000)]
    assert len(cached) == await stack.client.zcard(keys.caches) == AGENTS_CACHED
    assert not await stack.client.exists(keys.cached_vectors(MODEL.field, "agent-9"))
