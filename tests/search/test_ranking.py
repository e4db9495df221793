"""Scores of found records. Pure functions, so no store is needed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_core.records.memory import MemoryType, Priority, Record, Visibility
from memory_core.records.vectors import Matrix
from memory_server.index.queries import WordStatistics
from memory_server.search import ranking
from memory_server.search.analysis import count_stems, query_terms, stem, stem_counts, without
from memory_server.search.ranking import PLAIN, ParsedQuery
from memory_server.search.time_hints import Moment, is_near, moments

NOW = datetime(2026, 11, 22, tzinfo=UTC).timestamp()
SAME = np.array([1.0, 0.0], dtype=np.float32)


def record(content: str, seq: int = 1, **changes: Any) -> Record:
    """A memory in a conversation, with the query's vector."""
    plain = Record(
        id=f"m{seq}", content=content, type=MemoryType.CONTEXT, priority=Priority.MEDIUM, owner="o1", writer="alice",
        visibility=Visibility.PRIVATE, scope=frozenset(), tags=(), context="talk", source=None, seq=seq,
        occurred_at=NOW, created_at=NOW, updated_at=NOW, expires_at=NOW + 1, rev=1, state="m", metadata=None,
        vector=SAME.tobytes(),
    )  # fmt: skip
    return replace(plain, **changes)


def scores(records: list[Record], query: str = "boat harbour", **options: Any) -> list[float]:
    """Score records for a query whose words each occur in three of twenty memories."""
    terms = query_terms(query)
    parsed = ParsedQuery(terms, **options)
    statistics = WordStatistics(20, dict.fromkeys(terms, 3))
    return [scored.score for scored in ranking.score(ranking.features_of(records, parsed), parsed, statistics)]


def test_words_of_a_turn_count_less_for_turns_further_away() -> None:
    turns = [record("The boat left the harbour.", 1), *(record("It was a fine day for all.", seq) for seq in (2, 3, 4))]
    own, next_to, further, beyond = scores(turns)
    assert own > next_to > further > beyond == 0


@pytest.mark.parametrize("elsewhere", [{"context": "other"}, {"owner": "o2"}, {"context": None}, {"chunks": 2}])
def test_neighbouring_turns_count_only_within_one_conversation(elsewhere: dict[str, Any]) -> None:
    own, apart = scores([record("The boat left the harbour.", 1), record("A fine day.", 2, **elsewhere)])
    assert own > apart == 0


def test_answer_inherits_the_words_of_its_question() -> None:
    question, statement = (
        scores([record(text, 1), record("Three of them, and a dog.", 2)])
        for text in ("Which boat is in the harbour?", "That boat is in the harbour.")
    )
    assert question[1] > statement[1]


def test_short_turn_is_ranked_by_words_more_than_by_vector() -> None:
    long, short = record("all of it was so very nice that day", 1), record("Nice!", 5)
    without_words, with_words = scores([long, short], vector=SAME), scores([long, replace(short, content="Boat!")])
    assert without_words[0] > without_words[1]
    assert with_words[1] > with_words[0]
    outside = scores([replace(short, context=None), long], vector=SAME)
    assert outside[0] > outside[1]


def test_name_score_is_the_share_of_matching_names() -> None:
    turns = [record("A boat.", seq, source=source) for seq, source in ((1, "Ann"), (5, "Bo"), (9, "Ann Bo"))]
    both = scores(turns, "boat", names=frozenset({"ann", "bo"}))
    assert both[2] > both[0] == both[1]
    one = scores(turns, "boat", names=frozenset({"ann"}))
    assert one[0] == one[2] > one[1]


def test_memory_from_the_named_time_ranks_higher() -> None:
    then, now = record("A boat.", 1, occurred_at=NOW - 200 * 86_400), record("A boat.", 5)
    past, present = scores([then, now], "boat", moments=(Moment(2026, 11),))
    assert present > past > 0


def test_plain_scores_ignore_other_memories() -> None:
    turns = [record("The boat left the harbour?", 1), record("Nice.", 2, source="Ann")]
    alone = [scores([turn], weights=PLAIN)[0] for turn in turns]
    assert scores(turns, weights=PLAIN) == alone
    assert alone[1] == 0


def test_source_that_is_not_a_name_counts_as_text() -> None:
    assert scores([record("x", 1, source="harbour log")])[0] > 0
    assert scores([record("x", 1, source="harbour log")], names=frozenset({stem("harbour")}))[0] > 0


@given(
    st.lists(
        st.tuples(st.text("ab ?é", max_size=30), st.integers(1, 9), st.sampled_from(["c", "d", None])), max_size=8
    ),
    st.text("ab é", max_size=12),
    st.booleans(),
)
def test_scores_are_between_zero_and_one(
    turns: list[tuple[str, int, str | None]], query: str, has_vector: bool
) -> None:
    records = [record(text, seq, context=context, source="a") for text, seq, context in turns]
    names, times = frozenset({"a"}), (Moment(2026),)
    for score in scores(records, query, vector=SAME if has_vector else None, names=names, moments=times):
        assert 0 <= score <= 1


@pytest.mark.parametrize("count", range(1, 40))
def test_score_is_bit_identical_whatever_else_is_compared(count: int) -> None:
    chance = np.random.default_rng(count)
    words = "boat harbour lantern storm tide of the night in autumn".split()
    rows = [
        record(
            " ".join(chance.choice(words, 12)),
            context=None,
            vector=unit(chance.normal(size=384)).tobytes(),
        )
        for _ in range(count)
    ]
    options: dict[str, Any] = {"query": " ".join(words), "vector": unit(chance.normal(size=384))}
    assert scores(rows, **options) == [score for one in rows for score in scores([one], **options)]


def unit(row: Any) -> Matrix:
    return (row / np.linalg.norm(row)).astype("<f4")


def test_only_turns_not_read_yet_are_missing() -> None:
    parsed = ParsedQuery(["boat"])
    features = ranking.features_of(
        [record("A boat.", 1), record("A fine day.", 2), record("x", 9, context=None)], parsed
    )
    best = ranking.score(features, parsed, WordStatistics(3, {"boat": 1}))
    assert ranking.missing_turns(best, features) == {("o1", "talk"): [3, 4]}


@given(st.text(), st.lists(st.text(max_size=5), max_size=4))
def test_counting_some_stems_agrees_with_counting_all(text: str, others: list[str]) -> None:
    counts = stem_counts(text)
    wanted = {word: column for column, word in enumerate(dict.fromkeys([*counts, *others]))}
    assert count_stems(text, wanted) == ([counts[word] for word in wanted], counts.total())


def test_names_are_removed_from_a_query_unless_nothing_remains() -> None:
    assert without("What did Ann's sister tell Bo?", {"ann", "bo"}) == "What did sister tell"
    assert without("Ann", {"ann"}) == "Ann"
    assert without("What about Ann?", {"ann"}) == "What about"
    assert without("A plain question", {"ann"}) == "A plain question"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("What happened on 8 May 2023?", [Moment(2023, 5, 8)]),
        ("on May 8th, 2023", [Moment(2023, 5, 8)]),
        ("the 3rd of July", [Moment(None, 7, 3)]),
        ("in September 2022 and in June", [Moment(2022, 9), Moment(None, 6)]),
        ("since 2023-05", [Moment(2023, 5)]),
        ("2023-05-08", [Moment(2023, 5, 8)]),
        ("the summer of 2022", [Moment(2022)]),
        ("yesterday", [Moment(2026, 11, 21)]),
        ("this month", [Moment(2026, 11)]),
        ("Last year", [Moment(2025)]),
        ("last month", [Moment(2026, 10)]),
        ("may they march on, room 12345, version 3.20", []),
        ("tomorrow decides", []),
    ],
)
def test_times_in_a_query_are_understood(query: str, expected: list[Moment]) -> None:
    assert list(moments(query, NOW)) == expected


def test_last_week_is_the_seven_days_from_monday() -> None:
    assert [moment.day for moment in moments("last week", NOW)] == list(range(9, 16))


def test_time_hint_of_a_day_matches_memories_shortly_after_it() -> None:
    day = (Moment(2026, 11, 20),)
    assert [is_near(day, NOW + days * 86_400) for days in (-3, -2, 1, 2)] == [False, True, True, False]
    assert not is_near(day, None)
    assert not is_near((), NOW)
    assert is_near((Moment(None, 1),), datetime(1, 1, 2, tzinfo=UTC).timestamp())


@given(st.text())
def test_any_text_can_be_searched_for_time_hints(text: str) -> None:
    assert all(moment != Moment() for moment in moments(text, NOW))


@pytest.mark.parametrize(
    ("occurred_at", "expected"), [(NOW + 86_400, 0.5), (NOW, 1.0), (NOW - 20.0, 0.25), (None, 0.5)]
)
def test_date_beyond_now_does_not_count_as_recent(occurred_at: float | None, expected: float) -> None:
    found = record("boat", occurred_at=occurred_at, created_at=NOW - 10.0)
    assert ranking.recency(found, NOW, 10.0) == pytest.approx(expected)


@pytest.mark.parametrize(("chunks", "cosine", "is_clear"), [(1, 0.28, True), (12, 0.28, False), (12, 0.5, True)])
def test_chunk_of_many_stands_out_only_by_a_clear_score(chunks: int, cosine: float, is_clear: bool) -> None:
    near = np.array([cosine, (1 - cosine**2) ** 0.5], dtype=np.float32)
    found = record("A fine day.", chunks=chunks, vector=near.tobytes(), context=None)
    parsed = ParsedQuery(query_terms("boat harbour"), vector=SAME)
    (scored,) = ranking.score(ranking.features_of([found], parsed), parsed, WordStatistics(20, {}))
    assert ranking.stands_out(scored) is is_clear
