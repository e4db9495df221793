"""Every query that the builder makes, word for word: its text and its bound values."""

from __future__ import annotations

import re

import pytest

from memory_core.records.memory import MemoryType, Priority
from memory_core.records.model import Model
from memory_core.records.scope import Grant, Part, Principal
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters
from memory_server.index.query_builder import Query

MODEL = Model("minilm", 384)
ANN = Principal(
    "team",
    "ann",
    owner="o2",
    owners=("o1", "o2"),
    grants=(Grant("g", "bob", False, (Part(("t:o9:x", "i:m"), 0.0),)),),
    hidden=frozenset({"o:o8", "o:o7"}),
    quarantined=(("ann", 1.0), ("eve", 7.5)),
)
BOB = Principal("team", "bob")
EVERY = ResolvedFilters(
    owners=("o1",),
    types=(MemoryType.CODE, MemoryType.TASK),
    priorities=(Priority.HIGH,),
    tags=("red", "a\\b"),
    context="c",
    source="s",
    since=2.0,
    until=3.0,
)


def selection() -> Query:
    """A selection to narrow."""
    return Query("@a:{$p0}", {"p0": "x"})


def rendered(query: Query) -> str:
    """The text with the bound values inserted and zero weights removed."""
    assert list(query.params) == [f"p{number}" for number in range(len(query.params))]
    text = re.sub(r"\$(p\d+)", lambda found: f"<{query.params[found[1]]}>", query.text)
    return text.replace("=>{$weight: 0}", "")


SELECTIONS = {
    "all filters": (
        build.readable(ANN, EVERY, 5.0),
        "@scope:{<pub>|<o:o1>|<o:o2>|<r:o2>|<t:o9:x>|<i:m>} -@scope:{<o:o7>|<o:o8>} "
        "-(@writer:{<eve>} -@updated_at:[-inf (<7.500000>]) -@expires_at:[-inf <5.000000>] @owner:{<o1>} "
        "@type:{<code>|<task>} @priority:{<high>} @context:{<c>} @source:{<s>} @tags:{<red>|<a\\\\b>} "
        "@occurred_at:[<2.000000> <3.000000>] -@priority:{<archive>}",
    ),
    "all tags": (
        build.readable(BOB, ResolvedFilters(tags=("red", "blue"), tag_match="all"), 5.0),
        "@scope:{<pub>} -@expires_at:[-inf <5.000000>] @tags:{<red>} @tags:{<blue>} -@priority:{<archive>}",
    ),
    "since": (
        build.readable(BOB, ResolvedFilters(since=2.0, include_archive=True), 5.0),
        "@scope:{<pub>} -@expires_at:[-inf <5.000000>] @occurred_at:[<2.000000> inf]",
    ),
    "until": (
        build.readable(BOB, ResolvedFilters(until=3.0, priorities=(Priority.ARCHIVE,)), 5.0),
        "@scope:{<pub>} -@expires_at:[-inf <5.000000>] @priority:{<archive>} @occurred_at:[-inf <3.000000>]",
    ),
    "shared": (
        build.shared(ANN, ["t:o9:x"], ResolvedFilters(context="c"), 5.0),
        "@scope:{<t:o9:x>} -@expires_at:[-inf <5.000000>] @context:{<c>} -@priority:{<archive>} "
        "-(@writer:{<eve>} -@updated_at:[-inf (<7.500000>]) -@visibility:{<public>} -@owner:{<o1>|<o2>}",
    ),
    "shared with no agent": (
        build.shared(BOB, [], ResolvedFilters(), 5.0),
        "@scope:{<->} -@expires_at:[-inf <5.000000>] -@priority:{<archive>} -@visibility:{<public>} -@owner:{<->}",
    ),
    "expired": (
        build.expired(BOB, ResolvedFilters(), 5.0),
        "@scope:{<pub>} @expires_at:[-inf <5.000000>] -@priority:{<archive>}",
    ),
    "everything": (build.everything(), "*"),
    "all memories": (build.all_memories(), "@part:{<head>}"),
    "unfinished": (build.unfinished(MODEL), "@model:{<none:vec16_minilm>}"),
    "not embedded": (build.not_embedded(MODEL, 5.0), "@updated_at:[-inf (<5.000000>] -@model:{<vec16_minilm>}"),
    "living": (build.living(5.0), "@expires_at:[(<5.000000> inf]"),
    "concerned with a model": (
        build.concerned_with(MODEL),
        "@model:{<vec16_minilm>|<none:vec16_minilm>|<failed:vec16_minilm>}",
    ),
    "written by": (build.written_by("eve", 5.0), "@writer:{<eve>} @updated_at:[<5.000000> inf] @part:{<head>}"),
    "kept by": (build.kept_by(("o1", "o2"), 5.0), "@owner:{<o1>|<o2>} -@expires_at:[-inf <5.000000>]"),
    "kept by no owner": (build.kept_by((), 5.0), "@owner:{<->} -@expires_at:[-inf <5.000000>]"),
    "of an owner": (build.of_owner("o1"), "@owner:{<o1>}"),
    "near tasks": (build.near_tasks(b"v", 2), "(*)=>[KNN <2> @vec <b'v'>  AS distance]"),
}
NARROWED = {
    "a word": (build.with_word(selection(), "w"), "@content|terms|source_text:(<w>)"),
    "a source": (build.with_source(selection(), "w"), "@source_text:(<w>)"),
    "places": (
        build.at_turns(selection(), {("o1", "c"): [5, 3, 4, 9], ("o2", "d"): [1]}),
        "@part:{<head>} ((@context:{<c>} @owner:{<o1>} (@seq:[<3> <5>]|@seq:[<9> <9>]))"
        "|(@context:{<d>} @owner:{<o2>} (@seq:[<1> <1>])))",
    ),
    "a field": (build.having(selection(), "f", "1", "2"), "@f:{<1>|<2>}"),
    "memories": (build.memories(selection()), "@part:{<head>}"),
    "waiting for a vector": (build.without_vector(selection(), MODEL), "@model:{<none:vec16_minilm>}"),
    "having a vector": (build.with_vector(selection(), MODEL), "@model:{<vec16_minilm>}"),
    "sensitive": (build.sensitive(selection()), "@codec:{<aes-256-gcm>}"),
    "not sensitive": (build.without_sensitive(selection()), "-@codec:{<aes-256-gcm>}"),
    "owned": (build.owned(selection(), ["o1"]), "@owner:{<o1>}"),
    "owned by no owner": (build.owned(selection(), []), "@owner:{<->}"),
    "created since": (build.created_since(selection(), 5.0), "@created_at:[<5.000000> inf]"),
    "expiring": (build.expiring(selection(), 5.0), "@expires_at:[-inf <5.000000>]"),
    "created before": (build.created_before(selection(), 5.0), "@created_at:[-inf (<5.000000>]"),
    "updated between": (build.updated_between(selection(), 5.0, 6.0), "@updated_at:[(<5.000000> <6.000000>]"),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_text_of_a_selection(name: str) -> None:
    query, text = SELECTIONS[name]
    assert rendered(query) == text


@pytest.mark.parametrize("name", NARROWED)
def test_clause_added_by_narrowing(name: str) -> None:
    query, added = NARROWED[name]
    assert rendered(query) == f"@a:{{<x>}} {added}"


def test_neighbours_are_searched_within_the_selection() -> None:
    query = build.with_neighbours(selection(), b"v", 3, "HYBRID_POLICY ADHOC_BF")
    assert rendered(query) == "(@a:{<x>})=>[KNN <3> @vec <b'v'> HYBRID_POLICY ADHOC_BF AS distance]"


def test_created_before_without_a_position_adds_nothing() -> None:
    query = selection()
    assert build.created_before(query, None) is query


def test_arguments_contain_the_bound_values() -> None:
    assert build.everything().arguments() == ["DIALECT", 2]
    assert selection().arguments() == ["PARAMS", 2, "p0", "x", "DIALECT", 2]


def test_tags_and_ranges_have_no_weight() -> None:
    assert build.of_owner("o1").text == "@owner:{$p0}=>{$weight: 0}"
