"""Chooses how Redis finds the nearest; its own choice can be several times slower (benchmarks/filtered.py)."""

from __future__ import annotations

EXACT_UP_TO = 5000
"""Up to so many readable chunks all are compared, so that chunks of others cannot affect the answer."""
COMPARE = "HYBRID_POLICY ADHOC_BF"
WALK = "HYBRID_POLICY BATCHES EF_RUNTIME 300"
_EF = 300
_STEP = 5  # cost of a step in the graph, in comparisons


def choose(selected: int, documents: int, k: int) -> str:
    """Return the cheaper policy for the `k` nearest of `selected` chunks among all `documents` of the index."""
    if selected <= EXACT_UP_TO:
        return COMPARE
    passed = k * max(documents, selected) / selected
    return WALK if selected > _STEP * (passed + _EF) else COMPARE
