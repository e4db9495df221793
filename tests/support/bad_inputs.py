"""Odd, wrong and hostile inputs, and whether each is refused or answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from memory_core.records.names import LABEL_MAX_BYTES

OWN, OTHERS, PUBLIC, UNKNOWN = "<own>", "<others>", "<public>", "01arz3ndektsv4rrffq69g5fav"
LEGAL, PROTOCOL = "legal", "refused by the protocol"
OWN_CONTENT = "The harbour opens at dawn."
Check = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class Case:
    """One call. Arguments given as text are posted unchanged, because a client would not send them."""

    name: str
    tool: str
    arguments: dict[str, Any] | str
    outcome: str
    check: Check = bool
    asked: bool = False


def _refused(name: str, tool: str, /, code: str = "invalid_argument", *, asked: bool = False, **arguments: Any) -> Case:
    return Case(name, tool, arguments, code, asked=asked)


def _legal(name: str, tool: str, check: Check = bool, /, **arguments: Any) -> Case:
    return Case(name, tool, arguments, LEGAL, check)


def _raw(name: str, tool: str, arguments: str, outcome: str = PROTOCOL) -> Case:
    return Case(name, tool, arguments, outcome)


def _nothing_found(answer: dict[str, Any]) -> bool:
    return answer["memories"] == [] and answer["total"] == 0


def _readable_hits(answer: dict[str, Any]) -> bool:
    return all("hidden" not in hit["memory"]["content"] for hit in answer["hits"])


INJECTIONS = {
    "brace": "} | @owner:{bob}",
    "comma": "a,b",
    "star": "*",
    "prefix": "a*",
    "parameter": "$p0",
    "attribute": "=>{",
    "knn": "=>[KNN 10 @vec $v]",
    "backslash": "a\\b",
    "escaped comma": "a\\,b",
    "trailing backslash": "a\\",
    "pipe": "a|b",
    "quotes": "\"a' OR '1'='1",
    "public token": "pub",
    "percent": "%%a%%",
    "wildcard": "w'a*'",
    "bidi": "\u202ea\u2066b",
    "emoji": "😀👩‍👩‍👧",
    "newest emoji": "🫨",
    "longest label": "x" * LABEL_MAX_BYTES,
}
BAD_LABELS = {
    "NUL": "a\x00b",
    "separator": "a\x1fpub",
    "newline": "a\nb",
    "line separator": "a\u2028b",
    "blank": "  \t ",
    "257 bytes": "x" * 257,
    "257 bytes of two": "é" * 128 + "x",
}
QUERIES = {
    "star": "*",
    "scope": "@scope:{pub}",
    "parenthesis": "(",
    "quotes": "\"unclosed 'quotes",
    "percents": "%%fuzzy%%",
    "knn": "*=>[KNN 10 @vec $v]",
    "parameter": "$p0 $p1",
    "10 kB": "word " * 2000,
    "10 kB in one word": "w" * 10_000,
    "punctuation": "?!.,;:-_()[]{}@#$%^&*+=~`|\\/<>\"'",
    "stop words": "the of and who",
    "emoji": "🎉🚀",
    "cjk": "東京都の天気",
    "rtl": "שלום עולם مرحبا",
    "control characters": "a\x01\x1f\x7fb",
    "combining": "e\u0301" * 500,
    "backslashes": "\\\\\\ \\-\\",
    "bidi": "\u202eevil\u202c",
}
TEXTS_THAT_ARE_NO_TIME = {
    "word": "soonish maybe",
    "NUL": "\x00",
    "nan": "nan",
    "infinity": "-inf",
    "1e999": "1e999",
    "year 10000": "10000-01-01",
    "31 February": "2026-02-31",
    "ages": "99999999999 years ago",
    "injection": "inf] | @scope:{pub} @created_at:[0",
    "long": "ago " * 3000,
    "before year 1": "0001-01-01T00:00:00+14:00",
}
CURSORS = {
    "text": "not base64!",
    "emoji": "😀",
    "nan": "bmFu",
    "infinity": "aW5m",
    "minus infinity": "LWluZg",
    "1e999": "MWU5OTk",
    "injection": "MSBpbmZdIHwgQHNjb3BlOntwdWJ9",
    "10 kB": "A" * 10_000,
    "NUL": "\x00",
}
WRONG_TYPES: dict[str, dict[str, list[Any]]] = {
    "store_memory": {
        "content": [None, 5, ["x"], {"a": 1}, True],
        "memory_type": ["memo", 5, "CODES", ["code"], "code\x00"],
        "priority": ["urgent", 1],
        "visibility": ["secret", {}],
        "tags": [5, [5], [["a"]], {"a": "b"}, "[", "[" * 100_000],
        "context": [5, ["a"], {}],
        "source": [5, [], True],
        "occurred_at": [[], {}],
        "metadata": [5, [], "text", "[]", '{"a": ', "5"],
        "sensitive": ["maybe", 2],
        "ttl_seconds": ["x", 1.5, [], "1e3"],
        "idempotency_key": [5, " ", "a\x00b", "x" * 257],
        "wait": ["maybe", []],
        "agent_id": [5, ["alice"]],
        "vector": ["x", {"a": 1}, [["1"]], [None] * 384],
    },
    "retrieve_memory": {"memory_id": [None, 5, [], "", " " * 65, "x" * 65, "é", "a\x00b", "a\nb", "\u202e"]},
    "get_agent_memories": {
        "agent_id": [5, []],
        "agent_ids": [5, [5], {"a": 1}, ["x"] * 65],
        "memory_types": ["memo", ["code", "memo"], 5],
        "priorities": ["urgent", [["low"]]],
        "tag_match": ["none", 1],
        "include_archive": ["maybe"],
        "limit": [0, -1, 101, 10**30, 1.5, "many", []],
        "cursor": [5, []],
    },
    "clear_memory": {
        "memory_ids": [5, [5], [""], ["x" * 65], [f"{n}" for n in range(101)], {"a": 1}],
        "expired_only": ["maybe"],
        "dry_run": ["maybe"],
        "confirm": ["maybe"],
    },
    "update_memory": {
        "content": [5, "", "  \n ", "a\x00b"],
        "priority": ["urgent"],
        "visibility": ["secret"],
        "tags": [[5], ["\x1f"], 5],
        "context": [5, "a\x1fb", " "],
        "metadata": [5, "x"],
        "expected_rev": ["x", 1.5, []],
    },
    "semantic_search": {
        "query": [None, 5, [], "", " \n\t", "a\x00b", "x" * 17_000],
        "mode": ["fuzzy", 1],
        "limit": [0, -5, 101, 10**400],
        "min_score": [-0.1, 1.1, "nan", "inf", "x"],
        "recency_weight": [-1, 2, "nan"],
        "rerank": ["maybe"],
        "max_tokens": [-1, 1.5],
        "deadline_ms": [0, -1, 60_001],
    },
    "find_similar_memories": {
        "memory_id": [None, 5, "", "é", "x" * 65],
        "limit": [0, 101],
        "min_score": [-1, 2, "nan"],
        "exact": ["maybe"],
    },
    "memory_stats": {"agent_id": [5, []], "since": ["soonish", [], "nan"]},
}
NEEDED: dict[str, dict[str, Any]] = {
    "store_memory": {"content": "x"},
    "update_memory": {"memory_id": OWN},
    "semantic_search": {"query": "harbour"},
    "find_similar_memories": {"memory_id": OWN},
}


def _wrong_types() -> Iterable[Case]:
    for tool, arguments in WRONG_TYPES.items():
        for argument, values in arguments.items():
            for value in values:
                given = NEEDED.get(tool, {}) | {argument: value}
                yield _refused(f"{argument}={value!r:.30}", tool, **given)
    for tool in [*WRONG_TYPES, "gpu_status"]:
        yield _refused("unknown argument", tool, **NEEDED.get(tool, {}), surprise=1)
        long: dict[str, Any] = {"z" * 5000: "y" * 5000}
        yield _refused("long unknown argument", tool, **NEEDED.get(tool, {}), **long)
    for tool in ("store_memory", "retrieve_memory", "update_memory", "semantic_search", "find_similar_memories"):
        yield _refused("nothing given", tool)


def _labels() -> Iterable[Case]:
    for name, label in INJECTIONS.items():
        yield _legal(f"tag {name}", "store_memory", content="x", tags=[label])
        yield _legal(f"context {name}", "store_memory", content="x", context=label)
        yield _legal(f"source {name}", "store_memory", content="x", source=label)
        yield _legal(f"update to {name}", "update_memory", memory_id=OWN, tags=[label], context=label)
        yield _legal(f"find tag {name}", "get_agent_memories", _nothing_found, tags=["never", label], tag_match="all")
        yield _legal(f"find context {name}", "get_agent_memories", _nothing_found, context=label, source="never")
        yield _legal(f"find agent {name}", "get_agent_memories", _nothing_found, agent_ids=[label])
        yield _legal(f"agent {name}", "get_agent_memories", _nothing_found, agent_id=label)
        yield _legal(f"search source {name}", "semantic_search", lambda a: a["hits"] == [], query="x", source=label)
        yield _refused(f"as agent {name}", "store_memory", "forbidden", content="x", agent_id=label)
    for name, label in BAD_LABELS.items():
        for field in ("tags", "context", "source"):
            given: dict[str, Any] = {field: [label] if field == "tags" else label}
            yield _refused(f"{field} {name}", "store_memory", content="x", **given)
            yield _refused(f"{field} {name}", "get_agent_memories", **given)
    for tool in ("store_memory", "semantic_search"):
        yield _refused("33 tags", tool, **NEEDED[tool], tags=[f"t{n}" for n in range(33)])
    yield _legal("32 tags", "store_memory", content="x", tags=[f"t{n}" for n in range(32)])


def _times() -> Iterable[Case]:
    for name, text in TEXTS_THAT_ARE_NO_TIME.items():
        yield _refused(f"time {name}", "store_memory", content="x", occurred_at=text)
        yield _refused(f"since {name}", "semantic_search", query="x", since=text)
        yield _refused(f"since {name}", "memory_stats", since=text)
    for number in (1e18, -1e18, 253_402_300_800, 10**30):
        yield _refused(f"time {number}", "store_memory", content="x", occurred_at=number)
        yield _refused(f"until {number}", "get_agent_memories", until=number)
    yield _legal("year 1", "store_memory", content="x", occurred_at="0001-01-02")
    yield _legal("year 9999", "store_memory", content="x", occurred_at="9999-12-30")
    yield _refused("since after until", "semantic_search", query="x", since="yesterday", until="2 days ago")
    yield _refused("since after until", "clear_memory", since=10, until=5)
    for ttl in (0, -1, 10**12, 10**400):
        yield _refused(
            f"ttl {ttl:.3g}" if ttl < 10**20 else "ttl of 401 digits", "store_memory", content="x", ttl_seconds=ttl
        )


def _vectors() -> Iterable[Case]:
    unit = [1.0] + [0.0] * 383
    bad: dict[str, list[Any]] = {
        "empty": [],
        "383": unit[:-1],
        "385": [*unit, 0.0],
        "zero": [0.0] * 384,
        "tiny": [1e-30] * 384,
        "denormal": [5e-324] * 384,
        "beyond float32": [1e39, *unit[1:]],
        "of infinite length": [3e38] * 384,
        "of overflowing square": [1e20] * 384,
        "with nan": ["nan", *unit[1:]],
        "with infinity": ["-Infinity", *unit[1:]],
        "of huge integers": [10**400] * 384,
    }
    for name, vector in bad.items():
        yield _refused(f"vector {name}", "store_memory", content="x", memory_type="embedding", vector=vector)
    yield _refused("vector on a context", "store_memory", content="x", vector=unit)
    yield _legal("short but usable vector", "store_memory", content="x", memory_type="embedding", vector=[1e-4] * 384)


def _metadata() -> Iterable[Case]:
    for depth in (255, 300, 900, 10_000):
        text = '{"a":' + "[" * depth + "]" * depth + "}"
        yield _refused(f"metadata text {depth} deep", "store_memory", content="x", metadata=text)
        yield _refused(f"metadata text {depth} deep", "update_memory", memory_id=OWN, metadata=text)
    yield _refused("metadata text with NaN", "store_memory", content="x", metadata='{"a": NaN}')
    yield _refused("metadata text with infinity", "store_memory", content="x", metadata='{"a": [-Infinity]}')
    yield _refused("metadata text with 1e999", "store_memory", content="x", metadata='{"a": 1e999}')
    yield _refused("metadata text with a surrogate", "store_memory", content="x", metadata='{"a": "\\ud800"}')
    yield _refused("metadata text with a surrogate key", "update_memory", memory_id=OWN, metadata='{"\\udfff": 1}')
    yield _refused("metadata text with 5000 digits", "store_memory", content="x", metadata=f'{{"a": {"9" * 5000}}}')
    yield _refused("metadata of 17 kB", "store_memory", content="x", metadata={"a": "x" * 17_000})
    yield _refused("metadata of 17 kB in UTF-8", "store_memory", content="x", metadata={"a": "é" * 8500})
    yield _refused("tags text with a surrogate", "store_memory", content="x", tags='["\\ud800"]')
    yield _refused("ids text with a surrogate", "clear_memory", memory_ids='["\\ud800"]')
    yield _legal("metadata with NUL", "store_memory", content="x", metadata={"a\x00": "\x00", "": None})
    yield _raw(
        "metadata 10,000 deep", "store_memory", '{"content":"x","metadata":{"a":' + "[" * 10_000 + "]" * 10_000 + "}}"
    )
    yield _raw("metadata 300 deep", "store_memory", '{"content":"x","metadata":' + '{"a":' * 300 + "1" + "}" * 301)
    yield _raw("metadata NaN", "store_memory", '{"content":"x","metadata":{"a":NaN}}', "invalid_argument")
    yield _raw("metadata 1e999", "store_memory", '{"content":"x","metadata":{"a":-1e999}}', "invalid_argument")


def _posted() -> Iterable[Case]:
    yield _raw("lone surrogate in content", "store_memory", '{"content":"a\\ud800b"}')
    yield _raw("reversed surrogates", "store_memory", '{"content":"\\udc00\\ud800"}')
    yield _raw("lone surrogate in a query", "semantic_search", '{"query":"\\udfff"}')
    yield _raw("lone surrogate in an id", "retrieve_memory", '{"memory_id":"\\ud83d"}')
    yield _raw("integer of 5000 digits", "store_memory", '{"content":"x","ttl_seconds":' + "9" * 5000 + "}")
    yield _raw("arguments are a list", "store_memory", '["x"]')
    yield _raw("arguments are text", "semantic_search", '"harbour"')
    yield _raw("arguments are broken", "semantic_search", '{"query":')
    yield _raw("invalid UTF-8 escape", "store_memory", '{"content":"\\xff"}')
    yield _raw("arguments are null", "store_memory", "null", "invalid_argument")
    for value in ("NaN", "1e999"):
        vector = f"[{','.join([value] * 384)}]"
        embedding = f'{{"content":"x","memory_type":"embedding","vector":{vector}}}'
        yield _raw(f"vector of {value}", "store_memory", embedding, "invalid_argument")
    for value in ("NaN", "Infinity", "-Infinity", "1e999"):
        yield _raw(f"min_score {value}", "semantic_search", f'{{"query":"x","min_score":{value}}}', "invalid_argument")
        yield _raw(
            f"weight {value}", "semantic_search", f'{{"query":"x","recency_weight":{value}}}', "invalid_argument"
        )
        yield _raw(
            f"occurred_at {value}", "store_memory", f'{{"content":"x","occurred_at":{value}}}', "invalid_argument"
        )
        yield _raw(f"ttl {value}", "store_memory", f'{{"content":"x","ttl_seconds":{value}}}', "invalid_argument")
        yield _raw(f"since {value}", "memory_stats", f'{{"since":{value}}}', "invalid_argument")
        yield _raw(f"limit {value}", "get_agent_memories", f'{{"limit":{value}}}', "invalid_argument")


NO_SELECTION: dict[str, dict[str, Any]] = {
    "nothing": {},
    "an empty context": {"context": ""},
    "an empty source": {"source": ""},
    "empty lists": {"tags": "", "memory_ids": [], "agent_ids": ""},
    "only how tags match": {"tag_match": "all", "include_archive": True},
    "ids and a filter": {"memory_ids": [OWN], "tags": ["a"]},
    "ids and expired_only": {"memory_ids": [OWN], "expired_only": True},
}


def _selections() -> Iterable[Case]:
    for asked in (False, True):
        for name, arguments in NO_SELECTION.items():
            who = " by a client with elicitation" if asked else ""
            yield _refused(f"select {name}{who}", "clear_memory", dry_run=not asked, asked=asked, **arguments)
        yield _refused("clear another's", "clear_memory", "forbidden", agent_ids=["bob"], confirm=True, asked=asked)
    yield _legal("clear an unknown id", "clear_memory", lambda a: a["deleted"] == 0, memory_ids=[UNKNOWN], confirm=True)
    yield _legal(
        "clear others' ids", "clear_memory", lambda a: a["deleted"] == 0, memory_ids=[OTHERS, PUBLIC], confirm=True
    )


def _others() -> Iterable[Case]:
    for content in ("", " ", "\n\t\r", "\u3000\u2003", "a\x00b", "x" * ((1 << 20) + 1), "é" * (1 << 19) + "x"):
        yield _refused(f"content {content[:3]!r} of {len(content)}", "store_memory", content=content)
    for content in (
        "\x01\x1f\x7f",
        "\u202e\u2066",
        "\ufeff",
        "*",
        "日" * 1000,
        "\\",
        "{{ns}}",
        "\r\n.\r\n",
        "x" * (1 << 16),
    ):
        yield _legal(f"content {content[:8]!r} of {len(content)}", "store_memory", content=content, wait=False)
    for name, query in QUERIES.items():
        for mode in ("hybrid", "keyword", "vector"):
            yield _legal(f"{mode} for {name}", "semantic_search", _readable_hits, query=query, mode=mode)
    for name, cursor in CURSORS.items():
        yield _refused(f"cursor {name}", "get_agent_memories", cursor=cursor)
    for tool in ("retrieve_memory", "find_similar_memories"):
        for memory_id in (UNKNOWN, OTHERS, "*", "} | @scope:{pub}", "../meta", "{bad-input}", "$p0"):
            yield _refused(f"id {memory_id}", tool, "not_found", memory_id=memory_id)
    yield _refused("update an unknown id", "update_memory", "not_found", memory_id=UNKNOWN, content="x")
    yield _refused("update another's private", "update_memory", "not_found", memory_id=OTHERS, content="x")
    yield _refused("update another's public", "update_memory", "forbidden", memory_id=PUBLIC, content="x")
    yield _refused("update nothing", "update_memory", memory_id=OWN)
    for revision in (-1, 0, 10**9, 10**400):
        name = f"revision {revision}" if revision < 10**10 else "revision of 401 digits"
        yield _refused(name, "update_memory", "conflict", memory_id=OWN, content="x", expected_rev=revision)
    yield _refused("sensitive and public", "store_memory", content="x", sensitive=True, visibility="public")
    yield _refused("as another agent", "store_memory", "forbidden", content="x", agent_id="bob")
    yield _refused("as a long name", "store_memory", "forbidden", content="x", agent_id="b" * 5000)
    yield _legal("huge token budget", "semantic_search", _readable_hits, query="harbour", max_tokens=10**30)
    yield _legal("stats of a hostile name", "memory_stats", lambda a: a["total"] == 0, agent_id="}|@scope:{pub}")


CASES = [
    *_wrong_types(), *_labels(), *_times(), *_vectors(), *_metadata(), *_posted(), *_selections(), *_others(),
]  # fmt: skip
