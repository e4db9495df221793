"""Runs queries on the search index."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memory_core.cancellation import both
from memory_core.errors import StoreUnavailable
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix
from memory_core.redis_client import Client
from memory_server.engine.batch_cache import BatchCache, once
from memory_server.index import query_builder as build
from memory_server.index.loader import Ref
from memory_server.index.query_builder import Query

MAX_DEPTH = 6400
_WORD_BUDGET = 1600  # entries fetched for all words of a query together


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
class WordMatches:
    """Chunks with most of the query's words, best first, and the figures to score them.

    `waiting` chunks have no vector yet, and `failed` ones could not be embedded; Redis cannot compare `sensitive` ones.
    `full`: there may be more.
    """

    statistics: WordStatistics
    waiting: int = 0
    failed: int = 0
    sensitive: int = 0
    refs: Sequence[Ref] = ()
    full: bool = False
    warnings: Sequence[str] = ()


async def count(client: Client, keys: Keys, query: Query, timeout_ms: int, cache: BatchCache | None = None) -> int:
    key = ("count", keys, query.text, tuple(query.params.items()))
    return (await once(cache, key, lambda: count_all(client, keys, [query], timeout_ms)))[0]


async def count_all(client: Client, keys: Keys, queries: Sequence[Query], timeout_ms: int) -> list[int]:
    """Count what each of several queries selects, in one round trip."""
    pipe = client.pipeline(transaction=False)
    for query in queries:
        pipe.execute_command(*_search(keys, query, timeout_ms), "NOCONTENT", "LIMIT", 0, 0)
    answers = await pipe.execute()
    _refuse_partial(answers)
    return [int(answer[b"total_results"]) for answer in answers]


async def count_by_writer(client: Client, keys: Keys, query: Query, timeout_ms: int) -> dict[str, int]:
    """Count a selection by the agent that wrote each memory, most first, up to 100 agents."""
    groups = await _groups(client, keys, query, timeout_ms, [
        "GROUPBY", 1, "@writer", "REDUCE", "COUNT", 0, "AS", "number", "SORTBY", 2, "@number", "DESC", "MAX", 100,
    ])  # fmt: skip
    counts = {group[b"writer"].decode(): int(group[b"number"]) for group in groups if group.get(b"writer")}
    return dict(sorted(counts.items(), key=lambda found: (-found[1], found[0])))


async def count_by_day(client: Client, keys: Keys, query: Query, timeout_ms: int) -> dict[int, int]:
    """Count a selection by the day, in days since 1970 in UTC, on which each memory was stored."""
    groups = await _groups(client, keys, query, timeout_ms, [
        "APPLY", "floor(@created_at/86400)", "AS", "day", "GROUPBY", 1, "@day", "REDUCE", "COUNT", 0, "AS", "number",
        "LIMIT", 0, 10_000,
    ])  # fmt: skip
    return {int(float(group[b"day"])): int(group[b"number"]) for group in groups if group.get(b"day")}


async def _groups(
    client: Client, keys: Keys, query: Query, timeout_ms: int, steps: list[Any]
) -> list[dict[bytes, Any]]:
    command = ["FT.AGGREGATE", keys.index_alias, query.text, "TIMEOUT", timeout_ms, *steps, *query.arguments()]
    answer = await client.execute_command(*command)
    _refuse_partial([answer])
    return [result[b"extra_attributes"] for result in answer[b"results"]]


async def sources(client: Client, keys: Keys, query: Query, terms: Sequence[str], timeout_ms: int) -> dict[str, str]:
    """Return, for each word that is part of a source within a selection, one such source; in one round trip."""
    pipe = client.pipeline(transaction=False)
    for term in terms:
        narrowed = build.with_source(query, term)
        pipe.execute_command(
            "FT.AGGREGATE", keys.index_alias, narrowed.text, "TIMEOUT", timeout_ms,
            "LOAD", 1, "@source", "LIMIT", 0, 1, *narrowed.arguments(),
        )  # fmt: skip
    answers = await pipe.execute() if terms else []
    found = {term: answer[b"results"] for term, answer in zip(terms, answers, strict=True)}
    named = {term: rows[0][b"extra_attributes"].get(b"source") for term, rows in found.items() if rows}
    return {term: source.decode() for term, source in named.items() if source}


async def at_turns(
    client: Client, keys: Keys, selection: Query, turns: Mapping[tuple[str, str], Sequence[int]], timeout_ms: int
) -> list[Ref]:
    """Find the memories of a selection at some turns of conversations."""
    query, most = build.at_turns(selection, turns), sum(map(len, turns.values()))
    return _refs(keys, await client.execute_command(*_search(keys, query, timeout_ms), "NOCONTENT", "LIMIT", 0, most))


async def by_words(
    client: Client,
    keys: Keys,
    selection: Query,
    *,
    model: Model,
    terms: Sequence[str],
    depth: int,
    timeout_ms: int,
    cache: BatchCache | None,
) -> WordMatches:
    """Count a selection, and fetch up to `depth` candidates that hold some of the words, in one round trip.

    Each word is looked up separately and the words are weighted here, because the engine's document frequencies are
    wrong after records are indexed again. Raises redis.exceptions.ResponseError (missing index, or timeout).
    """
    pipe = client.pipeline(transaction=False)
    reach = max(depth // 4, min(2 * depth, _WORD_BUDGET // max(len(terms), 1)))
    for term in terms:
        command = _search(keys, build.with_word(selection, term), timeout_ms)
        pipe.execute_command(*command, "NOCONTENT", "SCORER", "DISMAX", "WITHSCORES", "LIMIT", 0, reach)
    counted = [
        selection,
        build.without_vector(selection, model),
        build.failed(selection, model),
        build.sensitive(selection),
    ]
    key = ("counts", keys, model, selection.text, tuple(selection.params.items()))
    counts = once(cache, key, lambda: count_all(client, keys, counted, timeout_ms))
    (total, waiting, failed, sensitive), found = await both(counts, pipe.execute())
    frequencies = [int(answer[b"total_results"]) for answer in found]
    statistics = WordStatistics(total, dict(zip(terms, frequencies, strict=True)))
    refs = _weigh(keys, found, [statistics.idf(term) for term in terms])
    return WordMatches(
        statistics,
        waiting=waiting,
        failed=failed,
        sensitive=sensitive,
        refs=refs[:depth],
        full=len(refs) > depth or any(number > reach for number in frequencies),
        warnings=[text for answer in found for text in _warnings(answer)],
    )


async def by_vector(
    client: Client, keys: Keys, selection: Query, vector: bytes, *, model: Model, way: str, depth: int, timeout_ms: int
) -> tuple[list[Ref], list[str]]:
    """Fetch the `depth` nearest by a `knn_policy` from the index of `model`, not the alias; and Redis's warnings."""
    nearest = build.with_neighbours(selection, vector, depth, way)
    options = ("NOCONTENT", "SORTBY", "distance", "ASC", "LIMIT", 0, depth)
    answer = await client.execute_command(*_search(keys, nearest, timeout_ms, keys.index(model.version)), *options)
    return _refs(keys, answer), list(_warnings(answer))


def _weigh(keys: Keys, answers: Sequence[dict[bytes, Any]], weights: Sequence[float]) -> list[Ref]:
    """Merge the chunks that hold several words, highest total weight first."""
    gathered: dict[bytes, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        results = answer[b"results"]
        best = max((result[b"score"] for result in results), default=0.0) or 1.0
        for result in results:
            name = result[b"id"]
            gathered[name] = gathered.get(name, 0.0) + weight * (1 + result[b"score"] / best)
    ordered = sorted(gathered, key=gathered.__getitem__, reverse=True)
    return [Ref.of_key(keys, name.decode()) for name in ordered]


async def page(
    client: Client, keys: Keys, query: Query, *, offset: int, limit: int, timeout_ms: int
) -> tuple[list[Ref], list[str]]:
    """Fetch the newest memories that a query selects, newest first, and Redis's warnings."""
    options = ("NOCONTENT", "SORTBY", "created_at", "DESC", "LIMIT", offset, limit)
    answer = await client.execute_command(*_search(keys, query, timeout_ms), *options)
    return _refs(keys, answer), list(_warnings(answer))


async def by_change(
    client: Client, keys: Keys, query: Query, *, newest_first: bool, offset: int, limit: int, timeout_ms: int
) -> list[Ref]:
    """Fetch the memories that a query selects by their last change. Raises StoreUnavailable (answer cut short)."""
    options = ("NOCONTENT", "SORTBY", "updated_at", "DESC" if newest_first else "ASC", "LIMIT", offset, limit)
    answer = await client.execute_command(*_search(keys, query, timeout_ms), *options)
    _refuse_partial([answer])
    return _refs(keys, answer)


async def some(client: Client, keys: Keys, query: Query, *, limit: int, timeout_ms: int) -> list[Ref]:
    """Fetch some chunks that a query selects, in no order."""
    return _refs(keys, await client.execute_command(*_search(keys, query, timeout_ms), "NOCONTENT", "LIMIT", 0, limit))


async def with_content(
    client: Client, keys: Keys, query: Query, *, offset: int, limit: int, timeout_ms: int
) -> tuple[list[tuple[Ref, str, str]], int]:
    """Fetch unordered chunks with owner and content hash, and count all. Raises StoreUnavailable (cut short)."""
    options = ("RETURN", 2, "owner", "hash", "LIMIT", offset, limit)
    answer = await client.execute_command(*_search(keys, query, timeout_ms), *options)
    _refuse_partial([answer])
    found = [
        (Ref.of_key(keys, result[b"id"].decode()), *(fields[name].decode() for name in (b"owner", b"hash")))
        for result in answer[b"results"]
        if len(fields := result.get(b"extra_attributes") or {}) == 2
    ]
    return found, int(answer[b"total_results"])


async def indexed(client: Client, keys: Keys, names: Sequence[str], timeout_ms: int) -> set[str]:
    """Return those keys of some hashes that the index covers."""
    command, number = _search(keys, build.everything(), timeout_ms), len(names)
    answer = await client.execute_command(*command, "INKEYS", number, *names, "NOCONTENT", "LIMIT", 0, number)
    _refuse_partial([answer])
    return {result[b"id"].decode() for result in answer[b"results"]}


async def graph_neighbours(
    client: Client, keys: Keys, vector: bytes, *, model: Model, k: int, timeout_ms: int
) -> list[tuple[str, float]]:
    """Fetch the k nearest to a vector of all owners by the index's graph, as keys and cosines."""
    query = build.with_neighbours(build.everything(), vector, k)
    options = ("RETURN", 1, "distance", "SORTBY", "distance", "ASC", "LIMIT", 0, k)
    answer = await client.execute_command(*_search(keys, query, timeout_ms, keys.index(model.version)), *options)
    _refuse_partial([answer])
    return [(row[b"id"].decode(), 1.0 - float(row[b"extra_attributes"][b"distance"])) for row in answer[b"results"]]


async def near_tasks(client: Client, keys: Keys, vector: bytes, *, model: Model, k: int, timeout_ms: int) -> list[str]:
    """Fetch the ids of the k open tasks whose texts are nearest to a vector, nearest first."""
    query = build.near_tasks(vector, k)
    return await _tasks(client, keys, query, model, timeout_ms, ["SORTBY", "distance", "ASC", "LIMIT", 0, k])


async def open_tasks(client: Client, keys: Keys, model: Model, *, limit: int, timeout_ms: int) -> list[str]:
    """Return the ids of open tasks that have a vector of a model."""
    return await _tasks(client, keys, build.everything(), model, timeout_ms, ["LIMIT", 0, limit])


async def _tasks(
    client: Client, keys: Keys, query: Query, model: Model, timeout_ms: int, options: list[Any]
) -> list[str]:
    command = _search(keys, query, timeout_ms, keys.task_index(model.field))
    answer = await client.execute_command(*command, "NOCONTENT", *options)
    return [result[b"id"].decode()[len(keys.task_vector("")) :] for result in answer[b"results"]]


def vector_of(record: Record) -> Matrix:
    """Return a record's vector, shape (dimension,)."""
    return np.frombuffer(record.vector or b"", dtype="<f4")


def _refuse_partial(answers: Iterable[dict[bytes, Any]]) -> None:
    """Raise StoreUnavailable if an answer was cut short: its counts and order are wrong."""
    if warnings := [text for answer in answers for text in _warnings(answer)]:
        raise StoreUnavailable(f"the search was cut short: {warnings[0][:80]}", hint="retry", retry_after=1.0)


def _search(keys: Keys, query: Query, timeout_ms: int, index: str = "") -> list[Any]:
    return ["FT.SEARCH", index or keys.index_alias, query.text, "TIMEOUT", timeout_ms, *query.arguments()]


def _refs(keys: Keys, answer: dict[bytes, Any]) -> list[Ref]:
    return [Ref.of_key(keys, result[b"id"].decode()) for result in answer[b"results"]]


def _warnings(answer: dict[bytes, Any]) -> Iterable[str]:
    for warning in answer.get(b"warning") or ():
        yield warning.decode() if isinstance(warning, bytes) else str(warning)
