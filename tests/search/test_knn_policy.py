"""How the nearest vectors within a selection are found: brute force, or the HNSW graph."""

from __future__ import annotations

import pytest

from memory_server.search.knn_policy import COMPARE, EXACT_UP_TO, WALK, choose


@pytest.mark.parametrize("documents", [0, EXACT_UP_TO, 1_000_000])
def test_small_selections_use_brute_force(documents: int) -> None:
    assert choose(EXACT_UP_TO, documents, 100) == COMPARE


@pytest.mark.parametrize("share", [0.2, 0.3, 0.6, 1.0])
def test_large_share_of_a_large_index_uses_the_graph(share: float) -> None:
    assert choose(int(100_000 * share), 100_000, 100) == WALK


def test_small_share_of_a_very_large_index_uses_brute_force() -> None:
    assert choose(10_000, 1_000_000, 100) == COMPARE


def test_fewer_neighbours_favour_the_graph() -> None:
    assert (choose(8_000, 200_000, 100), choose(8_000, 200_000, 10)) == (COMPARE, WALK)


def test_uncounted_index_is_assumed_as_large_as_the_selection() -> None:
    assert choose(20_000, 0, 100) == WALK
