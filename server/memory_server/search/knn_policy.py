"""Chooses how Redis finds the nearest within a selection: compare with all of it, or walk the graph past the rest.

Its own choice counts on neither the candidates asked for nor what a step in the graph costs, and compares with
tens of thousands where the graph would be several times as fast (benchmarks/filtered.py).
"""

from __future__ import annotations

EXACT_UP_TO = 5000
"""With this many readable chunks or fewer every one is compared, so nothing of others can show."""
COMPARE = "HYBRID_POLICY ADHOC_BF"
WALK = "HYBRID_POLICY BATCHES EF_RUNTIME 300"
_EF = 300
_STEP = 5
"""What a step in the graph costs, in comparisons."""


def choose(selected: int, documents: int, k: int) -> str:
    """Name the cheaper way to the `k` nearest of `selected` chunks among all `documents` of the index."""
    if selected <= EXACT_UP_TO:
        return COMPARE
    passed = k * max(documents, selected) / selected
    return WALK if selected > _STEP * (passed + _EF) else COMPARE
