"""Quality of a ranking, and percentiles of durations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MRR_DEPTH = 20


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of one ranking, or their means over several."""

    recall_at_5: float
    recall_at_10: float
    hit_at_10: float
    mrr: float


def judge(ranked: Sequence[str], evidence: frozenset[str]) -> Quality:
    """Compare ranked ids with the evidence. MRR is 0 beyond rank 20."""
    rank = next((place for place, item in enumerate(ranked[:MRR_DEPTH], 1) if item in evidence), None)
    found = [len(evidence & set(ranked[:k])) for k in (5, 10)]
    return Quality(
        recall_at_5=found[0] / len(evidence),
        recall_at_10=found[1] / len(evidence),
        hit_at_10=float(found[1] > 0),
        mrr=1 / rank if rank else 0.0,
    )


def mean(qualities: Sequence[Quality]) -> Quality:
    """Average each figure over all questions."""
    return Quality(
        *(
            statistics.fmean(getattr(quality, name) for quality in qualities)
            for name in ("recall_at_5", "recall_at_10", "hit_at_10", "mrr")
        )
    )


def percentile(durations: Sequence[float], share: float) -> float:
    """A percentile of durations, in their unit."""
    ordered = sorted(durations)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
