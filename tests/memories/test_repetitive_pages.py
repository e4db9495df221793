"""Pages and chunk numbers are right for texts that repeat themselves."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stack import Agent

from memory_server.memories.chunks import starts_of
from memory_server.memories.pages import chunks_between, end_of_page
from memory_server.memories.splitter import split, split_stepwise

UNITS = [
    "The same sentence again. ",
    "ab",
    " ",
    "x\n",
    "\n\n",
    "港は開く。",
    "# Title\n\ntext\n",
    "word word. ",
    "```\ncode\n```\n",
]
REPETITIVE = st.lists(st.tuples(st.sampled_from(UNITS), st.integers(1, 600)), min_size=1, max_size=4).map(
    lambda parts: "".join(unit * times for unit, times in parts)
)


@settings(max_examples=60, deadline=None)
@given(REPETITIVE)
def test_starts_are_where_the_chunks_are(content: str) -> None:
    placed = [one for step in split_stepwise(content) for one in step]
    assert [chunk for _, chunk in placed] == split(content)
    assert all(content.startswith(chunk, start) for start, chunk in placed)
    starts = asyncio.run(starts_of(content))
    assert starts == sorted(starts)
    assert len(starts) == len(placed)
    if len({start for start, _ in placed}) == len(placed):
        assert starts[1:] == [start for start, _ in placed[1:]]


@settings(max_examples=60, deadline=None)
@given(REPETITIVE, st.integers(50, 400))
def test_pages_of_repetitive_texts_are_the_content(content: str, most: int) -> None:
    starts, pages, start = asyncio.run(starts_of(content)), list[str](), 0
    while start < len(content):
        end = end_of_page(len(content), starts, start, most, lambda start, end: (end - start) // 4)
        assert start < end
        pages.append(content[start:end])
        assert chunks_between(starts, start, end).endswith(f"of {len(starts)}")
        start = end
    assert "".join(pages) == content


@pytest.mark.parametrize("unit", ["The same sentence again. ", "港は夜明けに開く。"])
async def test_chunk_of_a_repetitive_memory_is_read_by_its_number(alice: Agent, unit: str) -> None:
    marker = "The lighthouse keeper is called Ida. "
    content = unit * 200 + marker + unit * 200
    memory_id = await alice.store(content, wait=False)
    (number, *_) = [n for n, chunk in enumerate(split(content), 1) if marker in chunk]
    page = await alice.call("retrieve_memory", memory_id=memory_id, chunk=number, max_tokens=1500)
    assert page["chunks"].startswith(str(number))
    assert marker in page["memory"]["content"]
    found = await alice.call("semantic_search", query="lighthouse keeper Ida", mode="keyword")
    assert found["hits"][0]["part"] + 1 == number
