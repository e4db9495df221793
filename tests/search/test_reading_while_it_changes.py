"""Reads while the index or the records change either are complete or say that they are partial."""

from __future__ import annotations

from typing import Any

import pytest
from support.embedder_fixtures import wait_until
from support.stack import Agent, Stack

from memory_core.records.keys import Keys
from memory_server.index import queries
from memory_server.service import Service


@pytest.mark.parametrize("mode", ["keyword", "hybrid"])
async def test_search_during_an_index_rebuild_is_partial(
    alice: Agent, stack: Stack, service: Service, namespace: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alice.store("The heron nests by the weir.")
    by_words = queries.by_words

    async def dropped_meanwhile(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(queries, "by_words", by_words)
        await stack.client.execute_command("FT.DROPINDEX", Keys(namespace).index())
        await service.namespaces.get(namespace, renew=True)
        return await by_words(*args, **kwargs)

    monkeypatch.setattr(queries, "by_words", dropped_meanwhile)
    during = await alice.call("semantic_search", query="heron", mode=mode)
    assert during["partial"]
    assert "the index is being built" in during["reason"]

    async def is_complete() -> bool:
        after = await alice.call("semantic_search", query="heron", mode=mode)
        assert after["partial"] or len(after["hits"]) == 1
        return not after["partial"]

    await wait_until(is_complete)


async def test_list_skips_nothing_when_entries_are_deleted_meanwhile(
    alice: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await alice.store(f"note {number}", wait=False) for number in range(7)]
    page, fetched = queries.page, list[int]()

    async def vanishing(*args: Any, offset: int, **kwargs: Any) -> Any:
        found = await page(*args, offset=offset, **kwargs)
        if not fetched:
            await alice.call("clear_memory", memory_ids=ids[5:], confirm=True)
        fetched.append(offset)
        return found

    monkeypatch.setattr(queries, "page", vanishing)
    listed = await alice.call("get_agent_memories", limit=3)
    monkeypatch.setattr(queries, "page", page)
    assert len(fetched) > 1, "nothing was deleted in between, so the test proves nothing"
    assert [memory["memory_id"] for memory in listed["memories"]] == [ids[4], ids[3], ids[2]]
    rest = await alice.call("get_agent_memories", limit=3, cursor=listed["next_cursor"])
    assert [memory["memory_id"] for memory in rest["memories"]] == [ids[1], ids[0]]
