"""Computes the final scores. Redis only finds candidates: its scores count documents that the caller may not see.

A score is a weighted mean of numbers between 0 and 1: the cosine of the vectors, BM25 as a share of the query's best
possible score and, if the query names a source or a time, whether the memory matches it. They depend only on the
query, the memory, the turns around it and what the caller can read. All functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_core.records.memory import Priority, Record
from memory_core.records.vectors import Matrix, from_bytes
from memory_server.index.queries import WordStatistics
from memory_server.search.analysis import count_stems, source_stems, stem
from memory_server.search.time_hints import Moments, is_near

BM25_K1 = 0.9
BM25_B = 0.4
AVERAGE_LENGTH = 40
"""Words per memory, constant: the true average would reveal texts that the caller may not see."""
_LONGEST = 300
_BEST_OF_MANY, _MANY = 0.05, 8

_CLEAR_COSINE, _CLEAR_WORDS, LEAST_COSINE, _LEAST_SCORE = 0.25, 0.2, 0.15, 0.1
"""What stands out, tried with short texts and topics (docs/decisions/0009-event-waits.md)."""

Column = NDArray[np.float64]
"""One number per record."""
Turn = tuple[str, str, int]
"""Owner, context and sequence number of a memory in a conversation."""
Turns = dict[tuple[str, str], list[int]]
"""Sequence numbers by owner and context."""


@dataclass(frozen=True, slots=True)
class RankingWeights:
    """Weights of the criteria. They are fixed, so that a score does not depend on other stored memories.

    `vector` is the share of the cosine; the words have the rest. `source` and `time` are added if the query names
    them. Words of the turns one, two, … places away count by `around`; those of a question just before by `question`
    more. A turn with `brevity` words gets half its cosine, because short texts are near to everything.
    """

    vector: float = 0.5
    source: float = 0.15
    time: float = 0.1
    around: tuple[float, ...] = (0.4, 0.2)
    question: float = 0.6
    brevity: float = 4.0


IN_CONTEXT = RankingWeights()
PLAIN = RankingWeights(vector=0.0, source=0.0, time=0.0, around=(), question=0.0, brevity=0.0)
"""Only BM25 or, for a query without words, only the cosine of each memory."""
REACH = len(IN_CONTEXT.around)
"""How many turns away a memory counts for another."""


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """A query's words, stems that name a source, times, text to embed, and the text's vector, shape (dimension,)."""

    terms: Sequence[str] = ()
    names: frozenset[str] = frozenset()
    moments: Moments = ()
    text: str = ""
    vector: Matrix | None = None
    weights: RankingWeights = IN_CONTEXT

    @property
    def is_vector_alone(self) -> bool:
        return self.vector is not None and not (self.terms or self.names or self.moments)

    @property
    def stems(self) -> dict[str, int]:
        return {word: column for column, word in enumerate(dict.fromkeys(map(stem, self.terms)))}


@dataclass(frozen=True, slots=True)
class RecordFeatures:
    """A record with its counts of the query's stems, its length in words and its cosine."""

    record: Record
    turn: Turn | None
    counts: tuple[int, ...] = ()
    length: int = 0
    cosine: float | None = None


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """A record with its score and the scores of both sides, None if a side does not apply."""

    record: Record
    score: float
    vector_score: float | None = None
    keyword_score: float | None = None
    turn: Turn | None = field(default=None, repr=False)


def features_of(records: Sequence[Record], query: ParsedQuery) -> list[RecordFeatures]:
    """Compare each record with a query. Words of a source count as text unless they are names."""
    stems = query.stems
    in_source = {word: column for word, column in stems.items() if word not in query.names}
    cosines = [None] * len(records) if query.vector is None else vector_scores(records, query.vector)
    features: list[RecordFeatures] = []
    for record, cosine in zip(records, cosines, strict=True):
        counts, length = count_stems(record.content, stems) if stems else ([], 0)
        for word in in_source.keys() & source_stems(record.source or ""):
            counts[in_source[word]] += 1
        features.append(RecordFeatures(record, turn_of(record), tuple(counts), length, cosine))
    return features


def turn_of(record: Record) -> Turn | None:
    """Return the turn of a record; None outside conversations, and for chunks, which have enough text."""
    return (record.owner, record.context, record.seq) if record.context and record.chunks == 1 else None


def score(features: Sequence[RecordFeatures], query: ParsedQuery, statistics: WordStatistics) -> list[ScoredRecord]:
    """Score records, in the same order. Turns around a memory count if they are among `features`."""
    if not features:
        return []
    words = _bm25(features, query, statistics) if query.terms else np.zeros(len(features))
    match, most = _fused(features, words, query), 1.0
    match = np.maximum(match - [_discount(item.record.chunks) for item in features], 0.0)
    for weight, share in _extras(features, query):
        match, most = match + weight * np.array(share), most + weight
    return [
        ScoredRecord(item.record, float(final), item.cosine, float(by_words) if query.terms else None, item.turn)
        for item, final, by_words in zip(features, match / most, words, strict=True)
    ]


def _extras(features: Sequence[RecordFeatures], query: ParsedQuery) -> Iterator[tuple[float, list[float]]]:
    """Return the weight and shares of the source and the time, if the query names them."""
    if query.names:
        stems = [source_stems(item.record.source or "") for item in features]
        yield query.weights.source, [len(query.names & each) / len(query.names) for each in stems]
    if query.moments:
        yield query.weights.time, [float(is_near(query.moments, item.record.occurred_at)) for item in features]


def stands_out(scored: ScoredRecord) -> bool:
    """Whether a hit clearly matches its query: by its meaning, or by its words and a little by its meaning.

    The score must be clear too. It is low for one chunk of many that is a little near by chance.
    """
    cosine, words = scored.vector_score or 0.0, scored.keyword_score or 0.0
    is_near = cosine >= _CLEAR_COSINE or (words >= _CLEAR_WORDS and cosine >= LEAST_COSINE)
    return is_near and scored.score >= _LEAST_SCORE


def vector_scores(records: Sequence[Record], query: Matrix) -> list[float | None]:
    """Return the exact cosines, at least 0, of stored vectors with the query's; None without a vector."""
    scores: list[float | None] = [None] * len(records)
    present = [index for index, record in enumerate(records) if record.vector]
    if present:
        stored = from_bytes(b"".join(records[index].vector or b"" for index in present), query.shape[-1])
        cosines = np.clip(_each(stored, query.reshape(-1)), 0.0, 1.0)
        for index, cosine in zip(present, cosines, strict=True):
            scores[index] = float(cosine)
    return scores


def _each(rows: NDArray[Any], column: NDArray[Any]) -> NDArray[Any]:
    """Multiply rows by a column one by one: a matrix product rounds by position and so reveals other rows."""
    return (rows * column).sum(axis=1)


def missing_turns(best: Sequence[ScoredRecord], known: Sequence[RecordFeatures]) -> Turns:
    """Return the turns around the best memories that were not read yet, by owner and context."""
    have = {item.turn for item in known}
    missing: dict[tuple[str, str], set[int]] = {}
    for owner, context, seq in (scored.turn for scored in best if scored.turn):
        near = {seq + step for step in range(-REACH, REACH + 1) if seq + step > 0}
        missing.setdefault((owner, context), set()).update(n for n in near if (owner, context, n) not in have)
    return {where: sorted(numbers) for where, numbers in missing.items() if numbers}


def importance(priority: Priority) -> float:
    """Return 1 for critical down to 0 for archive."""
    ranks = list(Priority)
    return 1 - ranks.index(priority) / (len(ranks) - 1)


def recency(record: Record, now: float, half_life: float) -> float:
    """Return 1 for an age of 0, halved every `half_life` seconds."""
    at = record.occurred_at if record.occurred_at is not None and record.occurred_at <= now else record.created_at
    return 0.5 ** (max(0.0, now - at) / half_life)


def _fused(features: Sequence[RecordFeatures], words: Column, query: ParsedQuery) -> Column:
    """Combine the two sides; a missing side counts as 0."""
    if query.vector is None:
        return (1 - query.weights.vector) * words
    cosines = np.array([item.cosine or 0.0 for item in features])
    if not query.terms:
        return cosines
    brevity = np.array([query.weights.brevity if item.turn else 0.0 for item in features])
    lengths = np.array([max(item.length, 1) for item in features])
    return query.weights.vector * cosines * lengths / (lengths + brevity) + (1 - query.weights.vector) * words


def _bm25(features: Sequence[RecordFeatures], query: ParsedQuery, statistics: WordStatistics) -> Column:
    """Return BM25 as a share of the query's best possible score, over each memory's words and those around it."""
    idf: dict[str, float] = {}
    for term in query.terms:
        idf.setdefault(stem(term), statistics.idf(term))
    best = sum(idf.values()) * (BM25_K1 + 1)
    if not best:
        return np.zeros(len(features))
    counts = _with_neighbours(features, query.weights)
    lengths = np.array([min(item.length, _LONGEST) for item in features])[:, None]
    damping = BM25_K1 * (1 - BM25_B + BM25_B * lengths / AVERAGE_LENGTH)
    return _each(counts * (BM25_K1 + 1) / (counts + damping), np.array(list(idf.values()))) / best


def _with_neighbours(features: Sequence[RecordFeatures], weights: RankingWeights) -> Column:
    """Return word counts, shape (records, stems), with shares of the turns around each record."""
    own = np.array([item.counts for item in features], dtype=np.float64)
    where = {turn: row for row, item in enumerate(features) if (turn := item.turn)}
    if not weights.around or not where:
        return own
    padded = np.vstack([own, np.zeros(own.shape[1])])  # the last row is for turns without a neighbour
    asks = np.array([["?" in item.record.content] for item in features] + [[False]])
    total = own.copy()
    for step, share in enumerate(weights.around, 1):
        before, after = _beside(features, where, -step), _beside(features, where, step)
        total += share * (padded[before] + padded[after])
        if step == 1:
            total += weights.question * (padded * asks)[before]
    return total


def _beside(features: Sequence[RecordFeatures], where: dict[Turn, int], step: int) -> list[int]:
    none = len(features)
    turns = (item.turn for item in features)
    return [where.get((turn[0], turn[1], turn[2] + step), none) if turn else none for turn in turns]


def _discount(chunks: int) -> float:
    """Return the discount for many chunks: the best of more chunks is better by chance."""
    return _BEST_OF_MANY * math.log(min(chunks, _MANY))
