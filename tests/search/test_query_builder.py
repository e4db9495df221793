"""The query builder never puts user text into a query, and hostile values match only themselves."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stack import Agent, Stack

from memory_core.records.keys import Keys
from memory_core.records.memory import MemoryType, Priority
from memory_core.records.model import Model
from memory_core.records.names import SEPARATOR
from memory_core.records.scope import NOBODY, PUBLIC, Grant, Part, Principal
from memory_core.redis_client import Client
from memory_server.index import queries
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters
from memory_server.index.query_builder import Query
from memory_server.search import knn_policy

_REF = r"\$p\d+"
_FIELD = r"@(?:scope|owner|type|priority|context|source|tags|model|visibility|part)"
_VALUES = rf"\{{{_REF}(?:\|{_REF})*\}}"
_TAG = rf"(?:{_FIELD}:{_VALUES}=>\{{\$weight: 0\}}|-@(?:priority|visibility|owner):{_VALUES})"
_BOUND = rf"\(?(?:-inf|inf|{_REF})"
_NUMBER = rf"-?@(?:expires_at|created_at|updated_at|occurred_at):\[{_BOUND} {_BOUND}\]"
_SELECTION = rf"(?:{_TAG}|{_NUMBER})(?: (?:{_TAG}|{_NUMBER}))*"
_WORD = rf"{_SELECTION} @content\|terms\|source_text:\({_REF}\)"
_SOURCE = rf"{_SELECTION} @source_text:\({_REF}\)"
_RUNS = rf"\(@seq:\[{_REF} {_REF}\](?:\|@seq:\[{_REF} {_REF}\])*\)"
_PLACE = rf"\({_TAG} {_TAG} {_RUNS}\)"
_PLACES = rf"{_SELECTION} \({_PLACE}(?:\|{_PLACE})*\)"
_NEAR = rf"\({_SELECTION}\)=>\[KNN {_REF} @vec {_REF}(?: HYBRID_POLICY ADHOC_BF)? AS distance\]"
STRUCTURE = re.compile(rf"{_SELECTION}|{_WORD}|{_SOURCE}|{_PLACES}|{_NEAR}")
TIMEOUT_MS = 2000

anything = st.text(max_size=40) | st.sampled_from(
    ["", "*", "$p0", "} | @owner:{bob}", "=>[KNN 10 @vec $v]", "\\", "\x1f"]
)
several = st.lists(anything, max_size=5).map(tuple)
moments = st.floats(allow_nan=False, allow_infinity=False)
some_filters = st.builds(
    ResolvedFilters,
    owners=several,
    types=st.lists(st.sampled_from(MemoryType), max_size=3).map(tuple),
    priorities=st.lists(st.sampled_from(Priority), max_size=3).map(tuple),
    tags=several,
    tag_match=st.sampled_from(["any", "all"]),
    context=st.none() | anything,
    source=st.none() | anything,
    since=st.none() | moments,
    until=st.none() | moments,
    include_archive=st.booleans(),
)
some_grants = st.builds(
    Grant,
    id=anything,
    grantor=anything,
    may_write=st.booleans(),
    parts=st.lists(st.builds(Part, tokens=several, at=st.floats()), max_size=2).map(tuple),
)
some_principals = st.builds(
    Principal,
    namespace=st.just("team"),
    agent=st.just("alice"),
    owners=several,
    grants=st.lists(some_grants, max_size=2).map(tuple),
)


def _texts_of(principal: Principal, filters: ResolvedFilters) -> list[str]:
    alone = [text for text in (filters.context, filters.source) if text]
    return [*principal.tokens, *filters.owners, *filters.types, *filters.priorities, *filters.tags, *alone]


def _bound(query: Query) -> set[Any]:
    """The values of a query as the engine reads them, escaped or not."""
    return {form for value in query.params.values() for form in (value, _unescaped(value))}


def _unescaped(value: Any) -> Any:
    return value.replace("\\\\", "\\") if isinstance(value, str) else value


def _check(query: Query) -> None:
    assert STRUCTURE.fullmatch(query.text), query.text
    assert sorted(set(re.findall(r"\$(p\d+)", query.text))) == sorted(query.params)
    arguments = query.arguments()
    assert arguments[:2] == ["PARAMS", 2 * len(query.params)]
    assert arguments[-2:] == ["DIALECT", 2]
    assert len(arguments) == 4 + 2 * len(query.params)


@settings(deadline=None)
@given(some_principals, some_filters, moments, st.lists(anything, min_size=1, max_size=5), st.binary(max_size=16))
def test_every_query_has_the_fixed_structure_and_binds_every_value(
    principal: Principal, filters: ResolvedFilters, now: float, words: list[str], vector: bytes
) -> None:
    for base in (build.readable(principal, filters, now), build.expired(principal, filters, now)):
        _check(base)
        assert set(_texts_of(principal, filters)) <= _bound(base)
        with_word = build.with_word(base, words[0])
        assert words[0] in _bound(with_word)
        near = build.with_neighbours(base, vector, 7, knn_policy.COMPARE if words else knn_policy.WALK)
        assert {vector, 7} <= set(near.params.values())
        narrowed = build.having(base, "visibility", *words)
        assert set(words) <= _bound(narrowed)
        owned = build.owned(base, words)
        later = build.created_since(build.created_before(base, now), now)
        changed = build.updated_between(build.shared(principal, principal.granted, filters, now), now, now)
        assert set(principal.granted) <= _bound(changed)
        with_source = build.with_source(base, words[0])
        places = build.at_turns(base, {(words[0], word): [3, 1, 2, 9] for word in words})
        assert set(words) <= _bound(places)
        assert {1, 3, 9} <= set(places.params.values())
        assert words[0] in _bound(with_source)
        for query in (
            with_word,
            with_source,
            places,
            near,
            narrowed,
            owned,
            later,
            changed,
            build.without_vector(base, Model(words[0], 16)),
        ):
            _check(query)


@settings(deadline=None)
@given(some_filters, anything)
def test_query_text_depends_only_on_the_shape_of_the_filters(filters: ResolvedFilters, word: str) -> None:
    def plain(values: Sequence[str]) -> tuple[str, ...]:
        return tuple("x" for _ in values)

    same_shape = ResolvedFilters(
        owners=plain(filters.owners),
        types=filters.types,
        priorities=filters.priorities,
        tags=plain(filters.tags),
        tag_match=filters.tag_match,
        context="x" if filters.context else filters.context,
        source="x" if filters.source else filters.source,
        since=None if filters.since is None else 0.0,
        until=None if filters.until is None else 0.0,
        include_archive=filters.include_archive,
    )
    principal = Principal("team", "alice")
    one, other = build.readable(principal, filters, 1.0), build.readable(principal, same_shape, 2.0)
    assert one.text == other.text
    assert build.with_word(one, word).text == build.with_word(other, "x").text


@settings(deadline=None)
@given(some_principals, some_filters, some_filters)
def test_permission_is_the_first_clause_and_filters_never_change_it(
    principal: Principal, one: ResolvedFilters, other: ResolvedFilters
) -> None:
    for query in (build.readable(principal, one, 1.0), build.expired(principal, other, 1.0)):
        scope = query.text.split(" ", 1)[0]
        assert scope == "@scope:{" + "|".join(f"$p{n}" for n in range(len(principal.tokens))) + "}=>{$weight:"
        bound = [query.params[f"p{n}"] for n in range(len(principal.tokens))]
        assert [_unescaped(value) for value in bound] == [_unescaped(token) for token in principal.tokens]


@settings(deadline=None)
@given(some_principals, some_filters)
def test_narrowing_does_not_change_the_original_query(principal: Principal, filters: ResolvedFilters) -> None:
    base = build.readable(principal, filters, 1.0)
    text, params = base.text, dict(base.params)
    build.with_word(base, "a")
    build.with_neighbours(base, b"v", 1, knn_policy.WALK)
    build.owned(build.created_since(build.created_before(base, 1.0), 1.0), ["a"])
    assert (base.text, base.params) == (text, params)


def test_principal_without_owner_ids_reads_only_public_memories() -> None:
    query = build.readable(Principal("team", "alice"), ResolvedFilters(), 1.0)
    assert query.params["p0"] == PUBLIC
    assert query.text.startswith("@scope:{$p0}=>{$weight: 0} -@expires_at:")
    assert NOBODY in build.owned(query, ()).params.values()


def test_archive_is_excluded_unless_requested() -> None:
    principal = Principal("team", "alice")
    assert "-@priority:{" in build.readable(principal, ResolvedFilters(), 1.0).text
    assert "-@priority:{" not in build.readable(principal, ResolvedFilters(include_archive=True), 1.0).text
    assert "-@priority:{" not in build.readable(principal, ResolvedFilters(priorities=(Priority.ARCHIVE,)), 1.0).text


HOSTILE = [
    "*", "a*", "*a", "?", "%a%", "%%%a%%%", "w'a*'", "$p0", "$p1", "${p0}", "$", "}", "{", "{*}",
    "} | @owner:{bob}", "} @scope:{pub", "=>{", "=>[KNN 10 @vec $v]", "=>{$weight: 9}", "a,b", "a", "b", "A",
    "a|b", "|", "||", "a b", "a  b", "-a", "~a", "@a", "@tags:{a}", "(a)", "[0 inf]", "\"a\"", "'a'", "a:b",
    "a;b", "#a", "a\\b", "a\\,b", "a\\-b", "a-b", "a\\", "\\a", "\\", "\\\\", "a\\\\b", "a\\ b", "\\*", "\\$p0",
    "é", "É", "e", "日本", "日", "שלום", "\u202ea", "😀", "\u200b", "a\u200bb", "a\xa0b", "x" * 256, "x" * 255,
    "pub", "nobody", "inf", "-inf", "nan", "NULL", "null", "0",
]  # fmt: skip


async def _select(client: Client, keys: Keys, principal: Principal, filters: ResolvedFilters) -> set[str]:
    query = build.readable(principal, filters, time.time())
    refs, warnings = await queries.page(client, keys, query, offset=0, limit=200, timeout_ms=TIMEOUT_MS)
    assert warnings == []
    assert await queries.count(client, keys, query, TIMEOUT_MS) == len(refs)
    return {ref.memory_id for ref in refs}


async def _principal(client: Client, namespace: str, name: str) -> Principal:
    owner = (await client.hget(Keys(namespace).agent(name), "owner")).decode()
    return Principal(namespace, name, owner, (owner,))


async def test_hostile_label_matches_only_itself(alice: Agent, stack: Stack, namespace: str) -> None:
    stored = {
        label: await alice.store(f"memory {number}", tags=[label], context=label, source=label, wait=False)
        for number, label in enumerate(HOSTILE)
    }
    principal = await _principal(stack.client, namespace, "alice")
    wrong: dict[str, set[str]] = {}
    by_id = {memory_id: label for label, memory_id in stored.items()}
    for label, memory_id in stored.items():
        for name, filters in {
            "any tag": ResolvedFilters(tags=(label,)),
            "all tags": ResolvedFilters(tags=(label, label), tag_match="all"),
            "context": ResolvedFilters(context=label),
            "source": ResolvedFilters(source=label),
            "every field": ResolvedFilters(tags=(label, "never"), context=label, source=label, owners=principal.owners),
        }.items():
            found = await _select(stack.client, Keys(namespace), principal, filters)
            if found != {memory_id}:
                wrong[f"{name} {label!r}"] = {by_id[found_id] for found_id in found}
    assert wrong == {}


async def test_random_text_in_any_field_neither_fails_nor_widens_results(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    mine = await alice.store("alpha", tags=["a", "b"], context="c", source="d", wait=False)
    await bob.store("alpha", tags=["a"], context="c", source="d", wait=False)
    principal = await _principal(stack.client, namespace, "alice")
    keys, chance = Keys(namespace), random.Random(7)
    pieces = [
        *"{}()[]|@$*%\\-~=>:;,.'\"!?#&^+<>`/ ",
        "\xa0",
        "\u2028",
        "p0",
        "owner",
        "scope",
        "pub",
        "inf",
        "KNN",
        "a",
        "日",
    ]
    for _ in range(200):
        texts = ["".join(chance.choices(pieces, k=chance.randint(1, 12))) or "x" for _ in range(4)]
        kind = chance.choice(["tags", "context", "source", "owners"])
        listed, alone = tuple(texts), texts[0]
        filters = ResolvedFilters(
            tags=listed if kind == "tags" else (),
            owners=listed if kind == "owners" else (),
            context=alone if kind == "context" else None,
            source=alone if kind == "source" else None,
        )
        allowed = {mine} if kind == "tags" and {"a", "b"} & set(texts) else set[str]()
        assert await _select(stack.client, keys, principal, filters) <= allowed, texts


@pytest.mark.parametrize(
    "word", ["*", "$p0", "alpha)", "@scope:{pub}", "\\", "%alpha%", "=>{$weight: 5}", '"', "|", "-x"]
)
async def test_invalid_word_neither_fails_nor_widens_results(
    alice: Agent, bob: Agent, stack: Stack, namespace: str, word: str
) -> None:
    await alice.store("alpha", wait=False)
    hidden = await bob.store("alpha and beta", wait=False)
    principal = await _principal(stack.client, namespace, "alice")
    query = build.with_word(build.readable(principal, ResolvedFilters(), time.time()), word)
    ids, _ = await queries.page(stack.client, Keys(namespace), query, offset=0, limit=9, timeout_ms=TIMEOUT_MS)
    assert hidden not in ids


async def test_scope_tokens_are_bound_unchanged(alice: Agent, stack: Stack, namespace: str) -> None:
    await alice.store("alpha", wait=False)
    for token in ("*", "o:*", "$p0", "} | @scope:{*}", f"o:x{SEPARATOR}pub", "w'*'", "o:\\*"):
        stranger = Principal(namespace, "eve", grants=(Grant("g", "alice", False, (Part((token,), 0.0),)),))
        assert await _select(stack.client, Keys(namespace), stranger, ResolvedFilters()) == set()
