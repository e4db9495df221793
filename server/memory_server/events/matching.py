"""Matches memories with a standing query: the scores of a hybrid search, for given memories only."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from memory_core.errors import EmbeddingUnavailable
from memory_core.records import redis_time
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.vectors import Matrix
from memory_server.contract.arguments import SearchArguments
from memory_server.engine.request_context import RequestContext
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters
from memory_server.search import ranking
from memory_server.search.candidates import Search
from memory_server.search.query_parser import parse
from memory_server.search.ranking import IN_CONTEXT, ScoredRecord
from memory_server.search.services import SearchServices

_SLACK = 0.1
"""A query's vector may change a little once names are known, which match as words."""


async def score_records(
    service: SearchServices,
    request: RequestContext,
    principal: Principal,
    text: str,
    vector: Matrix,
    model: Model,
    records: Sequence[Record],
) -> list[ScoredRecord]:
    """Score chunks as a search for `text` would; `vector` is the text's, shape (dimension,)."""
    query = await parse(service, principal, SearchArguments(query=text), IN_CONTEXT)
    if query.text != text:
        with suppress(EmbeddingUnavailable):
            (vector,) = await service.embeddings.embed([query.text], request.caller, model=model)
    query = replace(query, vector=vector)
    readable = build.readable(principal, ResolvedFilters(), redis_time.now())
    search = Search(service, request, principal, readable, query, model, 1, service.settings.search_timeout_ms)
    words = await search.match_words(1)
    return ranking.score(ranking.features_of(records, query), query, words.statistics)


def is_match(scored: ScoredRecord, min_score: float | None) -> bool:
    """Whether a memory matches a standing query: by a given score, or because it stands out."""
    return ranking.stands_out(scored) if min_score is None else scored.score >= min_score


def lowest_cosine(min_score: float | None) -> float:
    """Return the cosine below which no memory matches, whatever its words, source and time."""
    if min_score is None:
        return ranking.LEAST_COSINE - _SLACK
    extras = IN_CONTEXT.source + IN_CONTEXT.time
    match = min_score * (1 + extras) - extras
    return (match - (1 - IN_CONTEXT.vector)) / IN_CONTEXT.vector - _SLACK
