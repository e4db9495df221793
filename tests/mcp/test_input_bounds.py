"""Arguments and stdio lines are bounded before they are parsed."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from memory_core.errors import InvalidArgument
from memory_core.records import bounded_json
from memory_core.records.bounded_json import MAX_TOKENS, has_too_many_values, parse_json
from memory_core.records.times import parse_time
from memory_server.contract import arguments
from memory_server.contract.arguments import Filters, StoreArguments
from memory_server.mcp.stdio_lines import Lines


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all texts that were parsed."""
    lengths: list[int] = []
    parse = bounded_json.from_json

    def counted(text: str | bytes) -> Any:
        lengths.append(len(text))
        return parse(text)

    monkeypatch.setattr(bounded_json, "from_json", counted)
    return lengths


@pytest.mark.parametrize(
    "text", ["[" + "[]," * MAX_TOKENS + "1]", "[" * (MAX_TOKENS + 1), '["",' + '"",' * MAX_TOKENS + "1]"]
)
def test_text_of_too_many_values_is_not_parsed(parsed: list[int], text: str) -> None:
    with pytest.raises(ValueError, match="too many"):
        parse_json(text)
    with pytest.raises(ValidationError):
        Filters(tags=text)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValidationError):
        StoreArguments(content="a", metadata=text)  # pyright: ignore[reportArgumentType]
    assert not parsed


@pytest.mark.parametrize("part", [",", '\\"', '\\\\"', "[", '"\\u0022'])
def test_values_are_counted_as_a_parser_counts_them(part: str) -> None:
    assert not has_too_many_values(json.dumps([part * 1000, {part * 500: part}]), 200)
    assert has_too_many_values(json.dumps([part] * 101), 200)
    assert not has_too_many_values(json.dumps([part] * 99), 200)


def test_deep_text_is_refused() -> None:
    with pytest.raises(ValueError, match="recursion"):
        parse_json("[" * 5000 + "]" * 5000)


@pytest.mark.parametrize("tags", [["a"] * 10_001, "a," * 10_001, json.dumps(["a"] * 10_001), [1] * 10_001])
def test_long_list_is_one_error(tags: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        Filters(tags=tags)
    assert refused.value.error_count() == 1
    assert Filters(tags="a, b").tags == ["a", "b"]  # pyright: ignore[reportArgumentType]
    assert arguments.as_json("[1") == "[1"


def test_long_time_is_refused_unparsed() -> None:
    with pytest.raises(InvalidArgument, match="not a time"):
        parse_time("1" * 101)


async def test_stdio_line_of_too_many_values_is_refused() -> None:
    good = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
    bad = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":[' + b"[]," * MAX_TOKENS + b"1]}}\n"
    deep = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}\n"
    answers: list[SessionMessage] = []
    lines = Lines(io.BytesIO(bad + deep + b" " * (5 << 20) + b"\n" + good), 4 << 20)

    async def answer(message: SessionMessage) -> None:
        answers.append(message)

    lines.answer = answer
    async with asyncio.timeout(30):
        assert [line async for line in lines] == [good.decode().strip()]
    texts = [str(one.message) for one in answers]
    assert ["too many" in texts[0], "nested" in texts[1], "longer" in texts[2]] == [True] * 3
