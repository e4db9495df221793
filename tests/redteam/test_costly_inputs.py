"""No input of an agent stops the server's event loop, and none takes a worker thread for long."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import pytest
from support.raw_http import call, connection, dashboard_call, longest_gap
from support.stack import Agent, Refused, Server

pytestmark = pytest.mark.redteam
_MIB = 1 << 20
_GAP = 0.6
"""Seconds of CPU time; the rule says 0.1 on an idle machine of the usual speed."""
_MARKS = "a" + "\u0301\u0327" * 45_000
_LONGEST = 4 * _MIB - 1000
_START = b'{"content":"a",'
_COSTLY: dict[str, tuple[bytes, bytes, bytes]] = {
    "lists": (_START + b'"metadata":{"a":[', b"[],", b"1]}}"),
    "objects": (_START + b'"metadata":{"a":[', b"{},", b"1]}}"),
    "texts": (_START + b'"metadata":{"a":[', b'"",', b"1]}}"),
    "numbers": (_START + b'"vector":[', b"1,", b"1]}"),
    "keys": (_START, b'"a":1,', b'"b":1}'),
    "wrong items": (_START + b'"tags":[', b"1,", b'"y"]}'),
    "list within a text": (_START + b'"tags":"[', b"[],", b'1]"}'),
    "object within a text": (_START + b'"metadata":"{', b'\\"a\\":1,', b'\\"b\\":1}"}'),
    "commas within a text": (_START + b'"tags":"', b"a,", b'a"}'),
    "escapes": (_START + b'"source":"', b"\\u0301\\u0327", b'"}'),
    "accents": (_START + b'"source":"', "\u0301\u0327".encode(), b'"}'),
    "digits": (_START + b'"ttl_seconds":', b"9", b"}"),
    "depth": (_START + b'"metadata":', b"[", b"}"),
    "white space": (_START, b" ", b'"sensitive":false}'),
    "time": (_START + b'"occurred_at":"', b"1", b'"}'),
    "key": (_START + b'"idempotency_key":"', b"1", b'"}'),
}


@pytest.mark.parametrize("make", [call, dashboard_call])
@pytest.mark.parametrize("most_units", [_LONGEST, 33_000, 9_000])
@pytest.mark.parametrize("kind", _COSTLY)
async def test_long_request_does_not_stop_the_event_loop(
    server: Server, namespace: str, kind: str, most_units: int, make: Callable[[str, str, bytes], bytes]
) -> None:
    start, unit, end = _COSTLY[kind]
    arguments = start + unit * min(most_units, (_LONGEST - len(start) - len(end)) // len(unit)) + end
    request = make(f"agent=mallory&namespace={namespace}", "store_memory", arguments)
    async with connection(server.url) as attacker, longest_gap() as gap:
        await attacker.send(request)
        status = await attacker.status()
        assert status < 500
    assert gap.cpu_seconds < _GAP


LABELS: list[tuple[str, dict[str, object]]] = [
    ("store_memory", {"content": "a", "tags": [_MARKS]}),
    ("store_memory", {"content": "a", "source": _MARKS}),
    ("store_memory", {"content": "a", "context": _MARKS}),
    ("semantic_search", {"query": _MARKS[:8000], "tags": [_MARKS]}),
    ("get_agent_memories", {"context": _MARKS}),
    ("register_agent", {"capabilities": [_MARKS]}),
    ("distribute_task", {"description": "a", "required_capabilities": [_MARKS]}),
]


@pytest.mark.parametrize(("tool", "arguments"), LABELS)
async def test_long_label_does_not_stop_the_event_loop(alice: Agent, tool: str, arguments: dict[str, object]) -> None:
    async with longest_gap() as gap:
        with pytest.raises(Refused):
            await alice.call(tool, **arguments)
    assert gap.cpu_seconds < _GAP


CONTENTS = {
    "blank lines": "\n" * (_MIB - 2) + "ab",
    "blank lines after words": "one two. " * 500 + "\n" * (_MIB - 5000) + "x",
    "carriage returns": "\r\n" * (_MIB // 2 - 1) + "a",
    "blanks": " " * (_MIB - 1) + "a",
    "one word": "a" * _MIB,
    "accents": "a" + "\u0301\u0327" * (_MIB // 4 - 1),
    "characters without blanks": "漢字" * (_MIB // 6),
    "mixed scripts": "aé漢١ " * (_MIB // 12),
    "camel case": "aB" * (_MIB // 2),
    "brackets": "[" * _MIB,
    "quotes": "> " * (_MIB // 2),
}


@pytest.mark.parametrize("kind", CONTENTS)
async def test_content_costs_bounded_time_off_the_event_loop(alice: Agent, kind: str) -> None:
    async with longest_gap() as gap:
        started = time.process_time()
        await alice.call("store_memory", content=CONTENTS[kind], wait=False)
        seconds = time.process_time() - started
    assert gap.cpu_seconds < _GAP
    assert seconds < 60.0


QUERIES = ("\u0301\u0327" * 4000, "漢" * 5000, "a_B" * 5000, "1 may " * 2700, "1" + " " * 16_000, "é" * 8000)


@pytest.mark.parametrize("query", [pytest.param(query, id=ascii(query[:6])) for query in QUERIES])
async def test_query_does_not_stop_the_event_loop(alice: Agent, query: str) -> None:
    await alice.store("The boat needs paint.")
    async with longest_gap() as gap:
        await alice.search("a " + query)
    assert gap.cpu_seconds < _GAP


async def test_sixteen_costly_contents_leave_room_for_others(server: Server, namespace: str, alice: Agent) -> None:
    blank = "one two. " * 500 + "\n" * 200_000 + "x"
    arguments = json.dumps({"content": blank, "wait": False}).encode()
    request = call(f"agent=mallory&namespace={namespace}", "store_memory", arguments)

    async def attack() -> int:
        async with connection(server.url) as attacker:
            await attacker.send(request)
            return await attacker.status(120.0)

    attacks = [asyncio.create_task(attack()) for _ in range(16)]
    await asyncio.sleep(0.2)
    async with asyncio.timeout(30.0):
        assert await alice.store("The boat needs paint.", wait=False)
    assert await asyncio.gather(*attacks) == [200] * 16
