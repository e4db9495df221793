"""Final scores. Redis gives candidates; its own scores count documents that the caller may not see.

A score is a weighted mean of two numbers between 0 and 1 that depend on nothing but the query, the memory and
what the caller can read: the cosine of the vectors, and BM25 as a share of the most that the query could earn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from memory_core.records import Priority, Record
from memory_core.vectors import Matrix, from_bytes
from memory_server.search.analysis import stem, stem_counts

BM25_K1 = 0.9
BM25_B = 0.4
AVERAGE_LENGTH = 40
"""Constant words per memory: a true average would tell of texts that the caller may not see."""
_BEST_OF_MANY, _MANY = 0.05, 8
VECTOR_WEIGHT = 0.5
"""Share of the cosine. One fixed share, so that a score means the same whatever else is stored."""

_counted = lru_cache(maxsize=2048)(stem_counts)
"""Memories that one query finds are found by the next one too, most of all within a batch."""


@dataclass(frozen=True, slots=True)
class WordStatistics:
    """How many readable memories there are, and how many hold each query word."""

    total: int
    frequencies: dict[str, int]

    def idf(self, word: str) -> float:
        """Inverse document frequency by BM25's formula, never negative."""
        frequency = min(self.frequencies.get(word, 0), self.total)
        return math.log(1 + (self.total - frequency + 0.5) / (frequency + 0.5))


@dataclass(frozen=True, slots=True)
class Scored:
    """A record with its score and the two parts; None where a side has nothing to say."""

    record: Record
    score: float
    vector_score: float | None
    keyword_score: float | None


def keyword_scores(records: Sequence[Record], terms: Sequence[str], statistics: WordStatistics) -> list[float]:
    """Score records against query words by BM25, each as a share of the query's best possible score."""
    weights: dict[str, float] = {}
    for term in terms:
        weights.setdefault(stem(term), statistics.idf(term))
    best = sum(weights.values()) * (BM25_K1 + 1)
    if not best:
        return [0.0] * len(records)
    return [_bm25(_counted(record.content, record.source), weights) / best for record in records]


def vector_scores(records: Sequence[Record], query: Matrix) -> list[float | None]:
    """Exact cosines, at least 0, of stored vectors with the query's; None for records without a vector."""
    scores: list[float | None] = [None] * len(records)
    present = [index for index, record in enumerate(records) if record.vector]
    if present:
        stored = from_bytes(b"".join(records[index].vector or b"" for index in present), query.shape[-1])
        cosines = np.clip(stored @ query.reshape(-1), 0.0, 1.0)
        for index, cosine in zip(present, cosines, strict=True):
            scores[index] = float(cosine)
    return scores


def fuse(vector_score: float | None, keyword_score: float | None) -> float:
    """Weigh the two sides; a side that is missing counts as nothing found by it."""
    if keyword_score is None:
        return vector_score or 0.0
    if vector_score is None:
        return (1 - VECTOR_WEIGHT) * keyword_score
    return VECTOR_WEIGHT * vector_score + (1 - VECTOR_WEIGHT) * keyword_score


def for_its_best(score: float, pieces: int) -> float:
    """Discount the best of many pieces: the more there are, the better the best is by chance alone."""
    return max(0.0, score - _BEST_OF_MANY * math.log(min(pieces, _MANY)))


def importance(priority: Priority) -> float:
    """1 for critical down to 0 for the archive."""
    ranks = list(Priority)
    return 1 - ranks.index(priority) / (len(ranks) - 1)


def recency(record: Record, now: float, half_life: float) -> float:
    """1 for what happened now, halved every `half_life` seconds."""
    age = max(0.0, now - (record.occurred_at or record.created_at))
    return 0.5 ** (age / half_life)


def _bm25(counts: Counter[str], weights: dict[str, float]) -> float:
    length = counts.total()
    damping = BM25_K1 * (1 - BM25_B + BM25_B * length / AVERAGE_LENGTH)
    return sum(
        weight * counts[word] * (BM25_K1 + 1) / (counts[word] + damping)
        for word, weight in weights.items()
        if word in counts
    )
