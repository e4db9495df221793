"""A long memory is read page by page; the pages together are exactly its content."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.stack import Agent, text_of

from memory_server.contract import tokens

CONTENTS = {
    "lines": "".join(f"Line {n} of the log says that all is well.\n" for n in range(3000)),
    "one line": "word " * 15_000,
    "without spaces": "0123456789abcdef" * 3000,
    "CJK": "港は夜明けに開く。" * 2500,
    "blank lines": "\n" * 20_000 + "end",
}


async def _pages(agent: Agent, memory_id: str, **arguments: Any) -> list[dict[str, Any]]:
    found, cursor = list[dict[str, Any]](), None
    while not found or cursor:
        result = await agent.raw("retrieve_memory", memory_id=memory_id, cursor=cursor, **arguments)
        most = arguments.get("max_tokens", 8000)
        assert not result.is_error, text_of(result)
        assert tokens.count(text_of(result)) <= most
        assert tokens.count(json.dumps(result.structured_content, ensure_ascii=False)) <= most
        assert result.structured_content is not None
        found.append(result.structured_content)
        cursor = found[-1].get("next_cursor")
    return found


@pytest.mark.parametrize("kind", CONTENTS)
async def test_pages_together_are_the_content(alice: Agent, kind: str) -> None:
    memory_id = await alice.store(CONTENTS[kind], wait=False, memory_type="document")
    pages = await _pages(alice, memory_id)
    assert "".join(page["memory"]["content"] for page in pages) == CONTENTS[kind]
    assert len(pages) > 1
    assert pages[0]["chunks"].startswith("1")
    whole = await alice.call("retrieve_memory", memory_id=memory_id, max_tokens=0)
    assert whole["memory"]["content"] == CONTENTS[kind]
    assert "next_cursor" not in whole
    await alice.call("clear_memory", memory_ids=[memory_id])


async def test_cursor_of_another_revision_is_refused(alice: Agent) -> None:
    memory_id = await alice.store(CONTENTS["lines"][:60_000], wait=False)
    first = await alice.call("retrieve_memory", memory_id=memory_id, max_tokens=1000)
    await alice.call("update_memory", memory_id=memory_id, tags=["new"])
    later = await alice.raw("retrieve_memory", memory_id=memory_id, cursor=first["next_cursor"])
    assert "changed" in text_of(later)
    from_chunk = await alice.call("retrieve_memory", memory_id=memory_id, chunk=3, max_tokens=1000)
    assert from_chunk["chunks"].startswith("3")
    for wrong in ({"cursor": "x"}, {"chunk": 10_000}, {"rev": 1}, {"cursor": "9" * 500 + ".1"}):
        assert (await alice.raw("retrieve_memory", memory_id=memory_id, **wrong)).is_error


async def test_resource_gives_pages_and_all(alice: Agent) -> None:
    memory_id = await alice.store(CONTENTS["lines"], wait=False)
    for query, is_whole in (("", False), ("?max_tokens=0", True)):
        read = await alice.client.read_resource(f"memory://{memory_id}{query}")
        memory = json.loads(read.contents[0].text)  # type: ignore[union-attr]
        assert (memory["content"] == CONTENTS["lines"]) is is_whole
        assert ("next_cursor" in memory) is not is_whole


async def test_search_budget_counts_what_is_sent(alice: Agent) -> None:
    for n in range(12):
        await alice.store(f"The lighthouse number {n} blinks.", wait=False, metadata={"log": "x y " * 3500})
    for most in (200, 8000):
        result = await alice.raw("semantic_search", query="lighthouse", mode="keyword", max_tokens=most)
        assert tokens.count(text_of(result)) <= most
        assert tokens.count(json.dumps(result.structured_content)) <= most
        assert "did not fit" in text_of(result)


@pytest.mark.parametrize("labels", [{}, {"context": "港" * 80, "tags": [f"{n}" * 60 for n in range(20)]}])
@pytest.mark.parametrize("kind", ["lines", "CJK"])
async def test_tiny_budget_gives_useful_pages_and_says_what_was_raised(
    alice: Agent, kind: str, labels: dict[str, Any]
) -> None:
    content = CONTENTS[kind][:1500]
    memory_id = await alice.store(content, wait=False, metadata={"log": "x y " * 100}, **labels)
    for most in (1, 250):
        found, cursor = list[str](), None
        while not found or cursor:
            result = await alice.raw("retrieve_memory", memory_id=memory_id, cursor=cursor, max_tokens=most)
            assert f"Note: max_tokens was raised from {most} to " in text_of(result)
            assert result.structured_content is not None
            assert f"raised from {most} to " in result.structured_content["note"]
            found.append(result.structured_content["memory"]["content"])
            cursor = result.structured_content.get("next_cursor")
            assert len(found[-1]) >= 80 or not cursor
        assert "".join(found) == content
    assert "note" not in await alice.call("retrieve_memory", memory_id=memory_id)


async def test_search_that_shows_nothing_says_what_to_raise(alice: Agent) -> None:
    await alice.store("The lighthouse on the cape blinks twice a minute.")
    assert "so raise it" in text_of(await alice.raw("semantic_search", query="lighthouse", max_tokens=1))
    assert (await alice.call("semantic_search", query="lighthouse", max_tokens=1000))["hits"]
