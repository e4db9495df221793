"""Searching by meaning and by words, and finding what resembles a memory or a vector."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TypeVar

from memory_core.connection import Client
from memory_core.errors import BulkUnavailable, EmbeddingUnavailable, InvalidArgument
from memory_core.keys import Keys, vector_field
from memory_core.records import Record
from memory_core.scope import Principal
from memory_core.vectors import Matrix, to_bytes
from memory_server.readers import reads
from memory_server.results.memories import Hit, Memory, SearchAnswer, Took
from memory_server.search import candidates, loading, ranking
from memory_server.search import query as build
from memory_server.search.analysis import query_terms
from memory_server.search.candidates import Candidates
from memory_server.search.ranking import Scored
from memory_server.service import Service
from memory_server.together import now
from memory_server.usecases.checks import check_limit, check_text
from memory_server.usecases.comparing import Near, exactly_near, near_together
from memory_server.usecases.lookup import load_readable, partial_reason, run_search
from memory_server.usecases.principals import Caller, resolve
from memory_server.usecases.selecting import Selection, to_filters

T = TypeVar("T")
_DEPTH = 100
"""Candidates taken from each side before scoring."""
_RERANK_DEPTH = 400
_FEW = 16
_RECENCY_HALF_LIFE = 7 * 86_400.0
_CHARS_PER_TOKEN = 4


class Mode(StrEnum):
    """Which sides of a search are asked."""

    HYBRID = "hybrid"
    VECTOR = "vector"
    KEYWORD = "keyword"


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What to search for and how to cut the answer."""

    query: str
    mode: Mode = Mode.HYBRID
    limit: int = 10
    min_score: float = 0.0
    selection: Selection = field(default_factory=Selection)
    recency_weight: float = 0.0
    priority_weight: float = 0.0
    rerank: bool = False
    max_tokens: int | None = None
    deadline_ms: int | None = None


@reads
async def semantic_search(service: Service, caller: Caller, request: SearchRequest) -> SearchAnswer:
    """Find memories that the caller may read, best first.

    Without a sidecar a hybrid search answers from words alone and says so.

    Raises:
        InvalidArgument: the query or a filter is not valid.
        EmbeddingUnavailable: vector mode, and no sidecar gave a vector.
        StoreUnavailable: Redis does not answer, or the search was stopped at its deadline.
    """
    started = time.perf_counter()
    if request.recency_weight + request.priority_weight > 1:
        raise InvalidArgument("recency_weight and priority_weight make more than 1", hint="leave some to the match")
    check_limit(request.limit, service.settings)
    query = check_text(request.query, "query", service.settings.limits.query_bytes)
    principal = await resolve(service.backend, caller)
    filters = await to_filters(service, principal, request.selection)
    if not await service.backend.knows(caller.namespace):
        return SearchAnswer(hits=[])
    await service.backend.namespace(caller.namespace)
    selected = build.readable(principal, filters, now())
    terms = [] if request.mode is Mode.VECTOR else query_terms(query)

    deadline_ms = request.deadline_ms or service.settings.search_timeout_ms
    embedding = _query_vector(service, caller, query, request.mode, deadline_ms)
    (vector, failure), embed_ms = await _timed(embedding)
    found, search_ms = await _timed(
        _search(
            service,
            principal,
            selected,
            terms=terms,
            vector=vector,
            limit=request.limit,
            exact=request.rerank,
            depth=_RERANK_DEPTH if request.rerank else _DEPTH,
            deadline_ms=max(int(deadline_ms - embed_ms), 1),
            near=None if request.rerank else await near_together(service, principal, filters, vector),
            by_cosine=not (terms or request.recency_weight or request.priority_weight),
        )
    )
    ranked_at = time.perf_counter()
    hits, left_out = _cut(_rank(found, terms, vector, request), request)
    service.touch(caller.namespace, [hit.record.id for hit in hits])
    total_ms = (time.perf_counter() - started) * 1000
    service.search_latency.add(total_ms)
    waiting = found.candidates.waiting if request.mode is not Mode.KEYWORD else 0
    warnings = [*found.candidates.warnings, *_over_budget(left_out)]
    progress = service.backend.progress(caller.namespace)
    reason = partial_reason(progress, warnings, failure=failure, waiting=waiting)
    return SearchAnswer(
        hits=[_hit(scored) for scored in hits],
        took_ms=Took(
            embed=_round(embed_ms),
            search=_round(search_ms),
            rerank=_round((time.perf_counter() - ranked_at) * 1000),
            total=_round(total_ms),
        ),
        partial=bool(reason),
        reason=reason,
    )


@reads
async def find_similar(
    service: Service,
    caller: Caller,
    memory_id: str,
    *,
    limit: int,
    min_score: float,
    selection: Selection,
    exact: bool,
) -> SearchAnswer:
    """Find the memories nearest in meaning to one the caller may read, leaving that one out.

    Raises:
        NotFound: no such memory that the caller may read.
        EmbeddingUnavailable: the memory still waits for its vector.
    """
    started = time.perf_counter()
    await service.backend.namespace(caller.namespace)
    principal = await resolve(service.backend, caller)
    field = vector_field(service.settings.vector_store.embedding_model)
    record = await load_readable(service, principal, memory_id, vector_field=field)
    if record.vector is None:
        raise EmbeddingUnavailable(
            "this memory still waits for its vector", hint="try again shortly, or see gpu_status", retry_after=2.0
        )
    filters = await to_filters(service, principal, selection)
    selected = build.readable(principal, filters, time.time())
    vector = candidates.vector_of(record)
    find = partial(_search, service, principal, selected, terms=[], vector=vector, limit=limit + 1, exact=exact)
    try:
        found, note = await find(near=exactly_near(service, principal, filters, vector) if exact else None), None
    except BulkUnavailable as error:
        found, note = await find(), f"compared by Redis, which is slower: {error.message}"
    request = SearchRequest(query="", mode=Mode.VECTOR, limit=limit, min_score=min_score)
    others = [scored for scored in _rank(found, [], vector, request) if scored.record.id != record.id]
    hits, _ = _cut(others, request)
    service.touch(caller.namespace, [scored.record.id for scored in hits])
    total_ms = _round((time.perf_counter() - started) * 1000)
    reason = partial_reason(
        service.backend.progress(caller.namespace), found.candidates.warnings, waiting=found.candidates.waiting
    )
    return SearchAnswer(
        hits=[_hit(scored) for scored in hits],
        took_ms=Took(search=total_ms, total=total_ms),
        partial=bool(reason),
        reason="; ".join(filter(None, (reason, note))) or None,
    )


async def nearest(service: Service, principal: Principal, vector: Matrix, limit: int) -> list[Scored]:
    """Find the readable memories nearest to a vector of shape (dimension,)."""
    selected = build.readable(principal, build.Filters(), time.time())
    found = await _search(service, principal, selected, terms=[], vector=vector, limit=limit, depth=_FEW)
    return _rank(found, [], vector, SearchRequest(query="", mode=Mode.VECTOR))[:limit]


async def best_of(
    service: Service, caller: Caller, principal: Principal, selected: build.Query, text: str, limit: int
) -> tuple[list[Scored], str | None]:
    """Find what matches a text within a selection, best first, and why it may be incomplete."""
    request = SearchRequest(query=text, limit=limit)
    terms = query_terms(text)
    vector, failure = await _query_vector(service, caller, text, Mode.HYBRID, service.settings.search_timeout_ms)
    found = await _search(service, principal, selected, terms=terms, vector=vector, limit=limit)
    hits, _ = _cut(_rank(found, terms, vector, request), request)
    waiting, warnings = found.candidates.waiting, found.candidates.warnings
    progress = service.backend.progress(caller.namespace)
    return hits, partial_reason(progress, warnings, failure=failure, waiting=waiting)


@dataclass(frozen=True, slots=True)
class _Found:
    candidates: Candidates
    records: list[Record]


async def _query_vector(
    service: Service, caller: Caller, query: str, mode: Mode, deadline_ms: int
) -> tuple[Matrix | None, str | None]:
    """Get the vector, or why there is none, in what the deadline leaves of the usual wait."""
    if mode is Mode.KEYWORD:
        return None, None
    started = time.perf_counter()
    try:
        wait = min(service.settings.embed_wait_seconds, deadline_ms / 1000)
        vectors = await service.embeddings.embed([query], caller, wait=wait)
    except EmbeddingUnavailable as error:
        if mode is Mode.VECTOR:
            raise
        return None, error.message
    service.embedding_latency.add((time.perf_counter() - started) * 1000)
    return vectors[0], None


async def _search(
    service: Service,
    principal: Principal,
    selected: build.Query,
    *,
    terms: Sequence[str],
    vector: Matrix | None,
    limit: int,
    exact: bool = False,
    depth: int = _DEPTH,
    deadline_ms: int | None = None,
    near: Near | None = None,
    by_cosine: bool = False,
) -> _Found:
    """Fetch and load candidates, deeper while records that vanished leave too few.

    `near` finds the neighbours instead of the index. What is ranked `by_cosine` alone then needs few of them.
    """
    keys = Keys(principal.namespace)
    vector_name = vector_field(service.settings.vector_store.embedding_model)
    timeout = min(deadline_ms or service.settings.search_timeout_ms, service.settings.search_timeout_ms)
    data = None if vector is None else to_bytes(vector)
    least = max(depth, 2 * limit)
    depth = 2 * limit if near and by_cosine else least

    async def fetch(client: Client) -> _Found:
        refs = None if neighbours is None else [ref for ref, _ in neighbours]
        proposed = await candidates.propose(
            client, keys, selected, terms=terms, vector=data, depth=depth, exact=exact, timeout_ms=timeout, near=refs
        )
        records = await loading.load_readable(client, keys, proposed.refs, principal, vector_field=vector_name)
        return _Found(proposed, records)

    while True:
        neighbours = await near(depth) if near else None
        if near and neighbours is None:
            near, depth = None, least
        found = await run_search(service, principal.namespace, fetch)
        enough = len({record.id for record in found.records}) >= limit
        if enough and neighbours and by_cosine and vector is not None:
            enough = _outranks(found, vector, limit, neighbours[-1][1])
        if enough or not found.candidates.full or depth >= candidates.MAX_DEPTH:
            return found
        depth *= 4


def _outranks(found: _Found, vector: Matrix, limit: int, cosine: float) -> bool:
    """Whether the best so many score at least as high as anything could that is no nearer than this."""
    ranked = _rank(found, [], vector, SearchRequest(query="", mode=Mode.VECTOR))
    return len(ranked) >= limit and ranked[limit - 1].score >= cosine


def _rank(found: _Found, terms: Sequence[str], vector: Matrix | None, request: SearchRequest) -> list[Scored]:
    """Score every candidate on both sides and order memories by their best piece; ties go to the newer."""
    vectors = [None] * len(found.records) if vector is None else ranking.vector_scores(found.records, vector)
    words: list[float | None] = [None] * len(found.records)
    if terms:
        words = list(ranking.keyword_scores(found.records, terms, found.candidates.statistics))
    now = time.time()
    scored = [
        Scored(record, _score(record, by_vector, by_words, request, now), by_vector, by_words)
        for record, by_vector, by_words in zip(found.records, vectors, words, strict=True)
    ]
    ordered = sorted(scored, key=lambda item: (-item.score, -item.record.created_at))
    best: dict[str, Scored] = {}
    for item in ordered:
        best.setdefault(item.record.id, item)
    return list(best.values())


def _score(
    record: Record, by_vector: float | None, by_words: float | None, request: SearchRequest, now: float
) -> float:
    match request.mode:
        case Mode.VECTOR:
            match = by_vector or 0.0
        case Mode.KEYWORD:
            match = by_words or 0.0
        case Mode.HYBRID:
            match = ranking.fuse(by_vector, by_words)
    return (
        (1 - request.recency_weight - request.priority_weight) * ranking.for_its_best(match, record.pieces)
        + request.recency_weight * ranking.recency(record, now, _RECENCY_HALF_LIFE)
        + request.priority_weight * ranking.importance(record.priority)
    )


def _cut(ranked: Sequence[Scored], request: SearchRequest) -> tuple[list[Scored], int]:
    """Apply the limit, the least score and the token budget; count what the budget alone left out.

    Nothing that matched on no side is a hit.
    """
    wanted = [
        scored
        for scored in ranked
        if scored.score >= request.min_score and (scored.vector_score or scored.keyword_score)
    ][: request.limit]
    if request.max_tokens is None:
        return wanted, 0
    kept: list[Scored] = []
    budget = request.max_tokens * _CHARS_PER_TOKEN
    for scored in wanted:
        if len(scored.record.content) <= budget:
            budget -= len(scored.record.content)
            kept.append(scored)
    return kept, len(wanted) - len(kept)


def _over_budget(left_out: int) -> list[str]:
    return [f"{left_out} hits did not fit into max_tokens"] if left_out else []


def _hit(scored: Scored) -> Hit:
    return Hit(
        memory=Memory.of(scored.record),
        score=round(scored.score, 4),
        vector_score=None if scored.vector_score is None else round(scored.vector_score, 4),
        keyword_score=None if scored.keyword_score is None else round(scored.keyword_score, 4),
        part=scored.record.part if scored.record.pieces > 1 else None,
    )


async def _timed(awaitable: Awaitable[T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = await awaitable
    return result, (time.perf_counter() - started) * 1000


def _round(milliseconds: float) -> float:
    return round(milliseconds, 2)
