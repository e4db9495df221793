"""Final scores. Redis gives candidates; its own scores count documents that the caller may not see.

A score is a weighted mean of numbers between 0 and 1 that depend on nothing but the query, the memory, what stands
around it and what the caller can read: the cosine of the vectors, BM25 as a share of the most that the query could
earn, and, where the query names a source or a time, whether the memory is from there.

Everything here is a pure function over records: text, vector, context and place in it.
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
from memory_server.search.analysis import count_stems, source_stems, stem
from memory_server.search.time_hints import Moments, told_of

BM25_K1 = 0.9
BM25_B = 0.4
AVERAGE_LENGTH = 40
"""Constant words per memory: a true average would tell of texts that the caller may not see."""
_LONGEST = 300
_BEST_OF_MANY, _MANY = 0.05, 8

Column = NDArray[np.float64]
"""A number for each of some records."""
Place = tuple[str, str, int]
"""Owner, context and sequence number: where a memory stands in its conversation."""
Places = dict[tuple[str, str], list[int]]
"""Sequence numbers by owner and context."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What counts how much. Fixed, so that a score means the same whatever else is stored.

    `vector` is the cosine's share, the words have the rest. `source` and `time` count besides where the query names
    such. The words of the memories one, two, … places away count by `around` for a short memory, and those of a
    question just before it by `question` more. A turn of a conversation with `brevity` words has half of its cosine:
    short ones are near to everything.
    """

    vector: float = 0.5
    source: float = 0.15
    time: float = 0.1
    around: tuple[float, ...] = (0.4, 0.2)
    question: float = 0.6
    brevity: float = 4.0


IN_CONTEXT = Weights()
PLAIN = Weights(vector=0.0, source=0.0, time=0.0, around=(), question=0.0, brevity=0.0)
"""Each memory by itself: BM25 alone, or for a query without words the cosine alone."""
REACH = len(IN_CONTEXT.around)
"""How many places away a memory still counts for another."""


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
class Wanted:
    """What a query asks for: its words, its vector, the stems that name a source, and the times it speaks of."""

    terms: Sequence[str] = ()
    vector: Matrix | None = None
    names: frozenset[str] = frozenset()
    moments: Moments = ()
    weights: Weights = IN_CONTEXT

    @property
    def is_vector_alone(self) -> bool:
        """Whether nothing but the cosine counts."""
        return self.vector is not None and not (self.terms or self.names or self.moments)

    @property
    def stems(self) -> dict[str, int]:
        """The distinct stems of the words, each with its column."""
        return {word: column for column, word in enumerate(dict.fromkeys(map(stem, self.terms)))}


@dataclass(frozen=True, slots=True)
class Reading:
    """What scoring needs of a record: how often it holds each stem of the query, its length in words, its cosine."""

    record: Record
    place: Place | None
    counts: tuple[int, ...] = ()
    length: int = 0
    cosine: float | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A record with how well it matches and the two sides of that; None where a side has nothing to say."""

    record: Record
    score: float
    vector_score: float | None = None
    keyword_score: float | None = None
    place: Place | None = field(default=None, repr=False)


def read(records: Sequence[Record], wanted: Wanted) -> list[Reading]:
    """Compare records with a query, each by itself. Words of a source count as text where they are no names."""
    stems = wanted.stems
    in_source = {word: column for word, column in stems.items() if word not in wanted.names}
    cosines = [None] * len(records) if wanted.vector is None else vector_scores(records, wanted.vector)
    readings: list[Reading] = []
    for record, cosine in zip(records, cosines, strict=True):
        counts, length = count_stems(record.content, stems) if stems else ([], 0)
        for word in in_source.keys() & source_stems(record.source or ""):
            counts[in_source[word]] += 1
        readings.append(Reading(record, place_of(record), tuple(counts), length, cosine))
    return readings


def place_of(record: Record) -> Place | None:
    """Where a record stands; None outside conversations, and for pieces: those have text enough of their own."""
    return (record.owner, record.context, record.seq) if record.context and record.pieces == 1 else None


def score(readings: Sequence[Reading], wanted: Wanted, statistics: WordStatistics) -> list[Scored]:
    """Score what was read, in the same order; what stands around a memory counts as far as it was read too."""
    if not readings:
        return []
    words = _bm25(readings, wanted, statistics) if wanted.terms else np.zeros(len(readings))
    match, most = _fused(readings, words, wanted), 1.0
    match = np.maximum(match - [_discount(reading.record.pieces) for reading in readings], 0.0)
    for weight, share in _besides(readings, wanted):
        match, most = match + weight * np.array(share), most + weight
    return [
        Scored(reading.record, float(final), reading.cosine, float(by_words) if wanted.terms else None, reading.place)
        for reading, final, by_words in zip(readings, match / most, words, strict=True)
    ]


def _besides(readings: Sequence[Reading], wanted: Wanted) -> Iterator[tuple[float, list[float]]]:
    """Give what counts besides text where the query names it: its weight, and how far each record has it."""
    if wanted.names:
        yield wanted.weights.source, [_from(reading.record, wanted.names) for reading in readings]
    if wanted.moments:
        yield wanted.weights.time, [float(told_of(wanted.moments, reading.record.occurred_at)) for reading in readings]


def vector_scores(records: Sequence[Record], query: Matrix) -> list[float | None]:
    """Exact cosines, at least 0, of stored vectors with the query's; None for records without a vector."""
    scores: list[float | None] = [None] * len(records)
    present = [index for index, record in enumerate(records) if record.vector]
    if present:
        stored = from_bytes(b"".join(records[index].vector or b"" for index in present), query.shape[-1])
        cosines = np.clip(_each(stored, query.reshape(-1)), 0.0, 1.0)
        for index, cosine in zip(present, cosines, strict=True):
            scores[index] = float(cosine)
    return scores


def _each(rows: NDArray[Any], column: NDArray[Any]) -> NDArray[Any]:
    """Multiply each row by a column, by itself: a matrix product rounds a row by where it stands among others, and so
    equal memories would come in an order that tells of what else was compared.
    """
    return (rows * column).sum(axis=1)


def missing_places(best: Sequence[Scored], known: Sequence[Reading]) -> Places:
    """Give the places around the best memories that were not read yet, by owner and context."""
    have = {reading.place for reading in known}
    missing: dict[tuple[str, str], set[int]] = {}
    for place in (scored.place for scored in best if scored.place):
        owner, context, seq = place
        near = {seq + step for step in range(-REACH, REACH + 1) if seq + step > 0}
        missing.setdefault((owner, context), set()).update(n for n in near if (owner, context, n) not in have)
    return {where: sorted(numbers) for where, numbers in missing.items() if numbers}


def importance(priority: Priority) -> float:
    """1 for critical down to 0 for the archive."""
    ranks = list(Priority)
    return 1 - ranks.index(priority) / (len(ranks) - 1)


def recency(record: Record, now: float, half_life: float) -> float:
    """1 for what happened now, halved every `half_life` seconds."""
    age = max(0.0, now - (record.occurred_at or record.created_at))
    return 0.5 ** (age / half_life)


def _fused(readings: Sequence[Reading], words: Column, wanted: Wanted) -> Column:
    """Weigh the two sides; a side that is missing counts as nothing found by it."""
    if wanted.vector is None:
        return (1 - wanted.weights.vector) * words
    cosines = np.array([reading.cosine or 0.0 for reading in readings])
    if not wanted.terms:
        return cosines
    brevity = np.array([wanted.weights.brevity if reading.place else 0.0 for reading in readings])
    lengths = np.array([max(reading.length, 1) for reading in readings])
    return wanted.weights.vector * cosines * lengths / (lengths + brevity) + (1 - wanted.weights.vector) * words


def _bm25(readings: Sequence[Reading], wanted: Wanted, statistics: WordStatistics) -> Column:
    """BM25 as a share of the query's best possible score, over the words of each memory and those around it."""
    idf: dict[str, float] = {}
    for term in wanted.terms:
        idf.setdefault(stem(term), statistics.idf(term))
    best = sum(idf.values()) * (BM25_K1 + 1)
    if not best:
        return np.zeros(len(readings))
    counts = _with_neighbours(readings, wanted.weights)
    lengths = np.array([min(reading.length, _LONGEST) for reading in readings])[:, None]
    damping = BM25_K1 * (1 - BM25_B + BM25_B * lengths / AVERAGE_LENGTH)
    return _each(counts * (BM25_K1 + 1) / (counts + damping), np.array(list(idf.values()))) / best


def _with_neighbours(readings: Sequence[Reading], weights: Weights) -> Column:
    """Word counts, shape (records, stems), with shares of those that stand around each record."""
    own = np.array([reading.counts for reading in readings], dtype=np.float64)
    where = {place: row for row, reading in enumerate(readings) if (place := reading.place)}
    if not weights.around or not where:
        return own
    padded = np.vstack([own, np.zeros(own.shape[1])])  # the last row stands for whom nobody is beside
    asks = np.array([["?" in reading.record.content] for reading in readings] + [[False]])
    total = own.copy()
    for step, share in enumerate(weights.around, 1):
        before, after = _beside(readings, where, -step), _beside(readings, where, step)
        total += share * (padded[before] + padded[after])
        if step == 1:
            total += weights.question * (padded * asks)[before]
    return total


def _beside(readings: Sequence[Reading], where: dict[Place, int], step: int) -> list[int]:
    nobody = len(readings)
    places = (reading.place for reading in readings)
    return [where.get((place[0], place[1], place[2] + step), nobody) if place else nobody for place in places]


def _from(record: Record, names: frozenset[str]) -> float:
    """Share of the names that stand in a record's source."""
    return len(names & source_stems(record.source or "")) / len(names)


def _discount(pieces: int) -> float:
    """What the best of many pieces loses: the more there are, the better the best is by chance alone."""
    return _BEST_OF_MANY * math.log(min(pieces, _MANY))
