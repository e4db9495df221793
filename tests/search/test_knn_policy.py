"""How the nearest within a selection are found: compared one by one, or by the graph."""

from __future__ import annotations

import pytest

from memory_server.search.knn_policy import COMPARE, EXACT_UP_TO, WALK, choose


@pytest.mark.parametrize("documents", [0, EXACT_UP_TO, 1_000_000])
def test_few_are_always_compared_one_by_one(documents: int) -> None:
    assert choose(EXACT_UP_TO, documents, 100) == COMPARE


@pytest.mark.parametrize("share", [0.2, 0.3, 0.6, 1.0])
def test_a_large_share_of_many_is_found_by_the_graph(share: float) -> None:
    assert choose(int(100_000 * share), 100_000, 100) == WALK


def test_a_small_share_of_very_many_is_compared_because_the_graph_would_pass_by_too_much() -> None:
    assert choose(10_000, 1_000_000, 100) == COMPARE


def test_fewer_neighbours_make_the_graph_worth_while_earlier() -> None:
    assert (choose(8_000, 200_000, 100), choose(8_000, 200_000, 10)) == (COMPARE, WALK)


def test_an_index_that_was_not_counted_yet_is_taken_for_what_is_selected() -> None:
    assert choose(20_000, 0, 100) == WALK
