"""Concurrent awaiting of two coroutines; keyword lookup runs while the sidecar embeds the query."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.stack import Agent

from memory_core.cancellation import both
from memory_core.errors import EmbeddingUnavailable
from memory_server.index import queries
from memory_server.service import Service


async def test_both_run_concurrently() -> None:
    met = asyncio.Barrier(2)

    async def meet(name: str) -> str:
        await met.wait()
        return name

    async with asyncio.timeout(5):
        assert await both(meet("one"), meet("other")) == ("one", "other")


async def test_failure_of_one_cancels_the_other_and_is_raised_unchanged() -> None:
    done: list[str] = []

    async def last_long() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            done.append("cancelled")
            raise

    async def fail() -> None:
        await asyncio.sleep(0)
        raise EmbeddingUnavailable("no sidecar")

    with pytest.raises(EmbeddingUnavailable):
        await both(last_long(), fail())
    assert done == ["cancelled"]


async def test_keywords_are_looked_up_while_the_vector_is_computed(
    alice: Agent, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alice.store("The heron nests by the weir.")
    order: list[str] = []
    exchange, by_words = service.embeddings.replies.exchange, queries.by_words

    async def exchanged(*args: Any) -> Any:
        order.append("asked")
        try:
            return await exchange(*args)
        finally:
            order.append("vector")

    async def looked_up(*args: Any, **kwargs: Any) -> Any:
        order.append("words")
        return await by_words(*args, **kwargs)

    monkeypatch.setattr(service.embeddings.replies, "exchange", exchanged)
    monkeypatch.setattr(queries, "by_words", looked_up)
    first = await alice.call("semantic_search", query="a grey bird at the water, never asked before")
    assert order == ["asked", "words", "vector"]
    assert len(first["hits"]) == 1
    order.clear()
    again = await alice.call("semantic_search", query="a grey bird at the water, never asked before")
    assert order == ["words"], "the vector was cached"
    assert again["hits"] == first["hits"]
