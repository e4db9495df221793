"""Hostile and odd values for every argument, and texts that no answer may contain."""

from __future__ import annotations

from typing import Any

CANARY = "kzq7-canary-of-the-victim"
"""Part of everything private of the victim. No answer to an attacker may contain it."""

INJECTIONS = (
    "} | @owner:{alice}",
    "@scope:{pub}",
    "*=>[KNN 10 @vec $v]",
    "=>{$weight: 100}",
    "$p0 $p1 $v",
    "a|b",
    "a,b",
    "a\\,b",
    "a\\",
    '"unclosed',
    "w'a*'",
    "%%%a%%%",
    "-@owner:{x}",
    "~(a|b)",
    "@created_at:[-inf inf]",
    "(",
    "| | |",
    "' OR '1'='1",
    "\r\nFLUSHALL\r\n",
    "*3\r\n$3\r\nSET\r\n",
    "return redis.call('KEYS','*')",
    "../../etc/passwd",
    "rm:{default}:mem:x",
    "}:x:{",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "memory://x",
)
UNICODE = (
    "\x00",
    "a\x00b",
    "\x1f",
    "a\x1fpub",
    "\x7f\x1b[2J",
    "\u202eevil\u202c",
    "\u2066\u2069",
    "\ufeff",
    "\u200b\u200d",
    "аlice",
    "ａｌｉｃｅ",
    "e\u0301" * 40,
    "Ⅷ²½",
    "İıŞß",
    "👩‍👩‍👧‍👦",
    "\U000e0001\U000e0061",
    "\ud800",
    "a\udfffb",
    "日本語のテキスト",
    "שלום",
    "\u2028\u2029",
    " \t\n ",
    "",
)
NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 100, 101, 1000, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
)
TIMES = (
    *("1e999", "nan", "-inf", "10000-01-01", "0001-01-01T00:00:00+14:00", "2026-02-31", "99999999999 years ago"),
    *("yesterday", "2 days ago", "2020-01-01", "in 3 days", "T", "2020-01-01T25:61:61Z", "1763" * 50),
)
IDS = (
    *("*", "../meta", "x}:y{", "01arz3ndektsv4rrffq69g5fav", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "x" * 64, "x" * 65, "$p0"),
    *("01arz3ndektsv4rrffq69g5fav.1.0123456789abcdef", "a.b.c", ".", "-", "0-0", "1-1", "9999999999999-0"),
)


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _nested_map(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


DEEP = (_nested(20), _nested(90), _nested_map(40), _nested_map(200), "[" * 10_000 + "]" * 10_000)
LONG = ("x" * 257, "é" * 200, "a b " * 5000, "x" * 70_000, "{" * 5000, "9" * 5000, "word," * 3000, "[" * 100_000)
WRONG: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"a": None},
    [1, "a"],
    {"$ref": "#"},
    "null",
    "[]",
    "{",
)
STRINGS = (*INJECTIONS, *UNICODE, *TIMES, *IDS)

FORBIDDEN = (
    *("Traceback", 'File "', "redis.exceptions", "ResponseError", "WRONGTYPE", "NOPERM", "ERR ", "user_script"),
    *("Syntax error at offset", "pydantic", "KeyError", "AttributeError", "unexpected error", "SEARCH_", CANARY),
)
"""Texts that reveal the server's internals or the victim's data."""

RAW_BODIES: tuple[bytes, ...] = (
    b"",
    b"null",
    b"[]",
    b"{",
    b'"text"',
    b"\xff\xfe\x00",
    b'{"jsonrpc":"2.0"}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}',
    b'{"jsonrpc":"1.0","id":1,"method":"tools/call","params":{}}',
    b'{"jsonrpc":"2.0","id":1,"method":"no/such","params":{}}',
    b'{"jsonrpc":"2.0","id":{},"method":"ping"}',
    b'{"jsonrpc":"2.0","id":1e999,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":[]}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["x"]}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"no_such_tool","arguments":{}}}',
    b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping"}]',
    b"[" * 10_000 + b"]" * 10_000,
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list_tasks","arguments":{"limit":'
    + b"9" * 10_000
    + b"}}}",
)
"""Bodies of HTTP requests that are not tool calls."""
