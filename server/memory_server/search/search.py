"""Searching by meaning and by words, and finding what resembles a memory or a vector."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from memory_core.cancellation import both
from memory_core.errors import BulkUnavailable, EmbeddingUnavailable, InvalidArgument
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.vectors import Matrix
from memory_core.store import redis_time
from memory_server.contract.answer import partial_reason
from memory_server.contract.memories import Hit, Memory, SearchAnswer, Took
from memory_server.contract.selection import Selection
from memory_server.contract.validation import check_limit, check_text
from memory_server.engine.batch_cache import now
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve
from memory_server.engine.request import Caller, RequestContext, reports_integrity
from memory_server.index import queries
from memory_server.index import query as build
from memory_server.index.filters import to_filters
from memory_server.index.queries import Worded
from memory_server.search import ranking
from memory_server.search.analysis import query_terms
from memory_server.search.bulk_neighbours import exactly_near, near_together
from memory_server.search.candidates import DEPTH, Found, Search
from memory_server.search.query_hints import understand
from memory_server.search.ranking import IN_CONTEXT, PLAIN, Scored, Wanted, Weights
from memory_server.search.services import SearchServices
from memory_server.security.open_records import load_readable

T = TypeVar("T")
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
    weights: Weights = IN_CONTEXT


@reads
@reports_integrity
async def semantic_search(service: SearchServices, request: RequestContext, params: SearchRequest) -> SearchAnswer:
    """Find memories that the caller may read, best first.

    Without a sidecar a hybrid search answers from words alone and says so.

    Raises:
        InvalidArgument: the query or a filter is not valid.
        EmbeddingUnavailable: vector mode, and no sidecar gave a vector.
        StoreUnavailable: Redis does not answer, or the search was stopped at its deadline.
    """
    started = time.perf_counter()
    if params.recency_weight + params.priority_weight > 1:
        raise InvalidArgument("recency_weight and priority_weight make more than 1", hint="leave some to the match")
    check_limit(params.limit, service.settings)
    query = check_text(params.query, "query", service.settings.limits.query_bytes)
    principal = await resolve(service.backend, request)
    filters = await to_filters(service.backend, principal, params.selection)
    if not await service.namespaces.knows(request.caller.namespace):
        return SearchAnswer(hits=[])
    prepared = await service.namespaces.get(request.caller.namespace)
    model = await service.models.current(request.caller.namespace)
    selected = build.readable(principal, filters, now(request.cache))

    deadline_ms = params.deadline_ms or service.settings.search_timeout_ms
    (search, failure), embed_ms = await _timed(
        _understood(service, request, principal, selected, query, params, model, deadline_ms)
    )
    wanted = search.wanted
    if not params.rerank:
        search = replace(
            search, near=await near_together(service, request.cache, principal, filters, wanted.vector, model)
        )
    found, search_ms = await _timed(search.run(params.limit))
    ranked_at = time.perf_counter()
    hits, left_out = _cut(_rank(found, wanted, params), params)
    service.touch(request.caller.namespace, [hit.record.id for hit in hits])
    ended_at = time.perf_counter()
    total_ms, rank_ms = (ended_at - started) * 1000, (ended_at - ranked_at) * 1000
    service.search_latency.add(request.caller, total_ms)
    service.counters.searched(understand=embed_ms, search=search_ms, rank=rank_ms)
    waiting = found.candidates.words.waiting if params.mode is not Mode.KEYWORD else 0
    warnings = [*found.candidates.warnings, *_over_budget(left_out)]
    progress = await service.namespaces.covered(prepared)
    reason = partial_reason(progress, warnings, failure=failure, waiting=waiting)
    return SearchAnswer(
        hits=[_hit(scored, principal, model) for scored in hits],
        took_ms=Took(
            embed=_round(embed_ms),
            search=_round(search_ms),
            rerank=_round(rank_ms),
            total=_round(total_ms),
        ),
        partial=bool(reason),
        reason=reason,
    )


@reads
@reports_integrity
async def find_similar(
    service: SearchServices,
    request: RequestContext,
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
    prepared = await service.namespaces.get(request.caller.namespace)
    principal = await resolve(service.backend, request)
    model = await service.models.current(request.caller.namespace)
    record = await load_readable(service, request, principal, memory_id, model=model)
    if record.vector is None:
        raise EmbeddingUnavailable(
            "this memory still waits for its vector", hint="try again shortly, or see gpu_status", retry_after=2.0
        )
    filters = await to_filters(service.backend, principal, selection)
    vector = queries.vector_of(record)
    search = Search(
        service,
        request,
        principal,
        build.readable(principal, filters, redis_time.now()),
        Wanted(vector=vector, weights=PLAIN),
        model,
        exact=exact,
        secret=record.is_sensitive,
        by_cosine=True,
    )
    near = exactly_near(service, principal, filters, vector, model) if exact and not search.secret else None
    note: str | None = None
    try:
        found = await replace(search, near=near).run(limit + 1)
    except BulkUnavailable as error:
        found, note = await search.run(limit + 1), f"compared by Redis, which is slower: {error.message}"
    params = SearchRequest(query="", limit=limit, min_score=min_score)
    others = [scored for scored in _rank(found, search.wanted, params) if scored.record.id != record.id]
    hits, _ = _cut(others, params)
    service.touch(request.caller.namespace, [scored.record.id for scored in hits])
    total_ms = _round((time.perf_counter() - started) * 1000)
    progress = await service.namespaces.covered(prepared)
    reason = partial_reason(progress, found.candidates.warnings, waiting=found.candidates.words.waiting)
    return SearchAnswer(
        hits=[_hit(scored, principal, model) for scored in hits],
        took_ms=Took(search=total_ms, total=total_ms),
        partial=bool(reason),
        reason="; ".join(filter(None, (reason, note))) or None,
    )


async def nearest(
    service: SearchServices,
    request: RequestContext,
    principal: Principal,
    vector: Matrix,
    model: Model,
    limit: int,
    *,
    secret: bool = False,
) -> list[Scored]:
    """Find the readable memories nearest to a vector of `model`, shape (dimension,); to secret ones, sensitive."""
    selected = build.readable(principal, build.Filters(), redis_time.now())
    if secret:
        selected = build.sensitive(selected)
    wanted = Wanted(vector=vector, weights=PLAIN)
    found = await Search(service, request, principal, selected, wanted, model, depth=_FEW, secret=secret).run(limit)
    return _rank(found, wanted, SearchRequest(query=""))[:limit]


async def best_of(
    service: SearchServices, request: RequestContext, principal: Principal, selected: build.Query, text: str, limit: int
) -> tuple[list[Scored], str | None]:
    """Find what matches a text within a selection, best first, and why it may be incomplete."""
    params = SearchRequest(query=text, limit=limit)
    timeout, model = service.settings.search_timeout_ms, await service.models.current(principal.namespace)
    prepared = await service.namespaces.get(principal.namespace)
    search, failure = await _understood(service, request, principal, selected, text, params, model, timeout)
    found = await search.run(limit)
    hits, _ = _cut(_rank(found, search.wanted, params), params)
    waiting, warnings = found.candidates.words.waiting, found.candidates.warnings
    progress = await service.namespaces.covered(prepared)
    return hits, partial_reason(progress, warnings, failure=failure, waiting=waiting)


async def _understood(
    service: SearchServices,
    request: RequestContext,
    principal: Principal,
    selected: build.Query,
    query: str,
    params: SearchRequest,
    model: Model,
    deadline_ms: int,
) -> tuple[Search, str | None]:
    """Read a query and get its vector, or why there is none; its words are looked up while a sidecar is at work."""
    ends = time.perf_counter() + deadline_ms / 1000

    def left() -> int:
        return max(int((ends - time.perf_counter()) * 1000), 1)

    wanted, text = await _read(service, principal, query, params)
    search = Search(
        service,
        request,
        principal,
        selected,
        wanted,
        model,
        exact=params.rerank,
        depth=_RERANK_DEPTH if params.rerank else DEPTH,
        deadline_ms=left(),
    )
    asked = asyncio.Event()

    async def embed() -> tuple[Matrix | None, str | None]:
        try:
            return await _query_vector(service, request.caller, text, params.mode, model, left(), asked)
        finally:
            asked.set()

    async def look_up() -> Worded:
        await asked.wait()
        return await search.ask_words(search.depth_for(params.limit))

    (vector, failure), words = await both(embed(), look_up())
    wanted = replace(wanted, vector=vector)
    by_cosine = wanted.is_vector_alone and not (params.recency_weight or params.priority_weight)
    return replace(search, wanted=wanted, ahead=words, by_cosine=by_cosine, deadline_ms=left()), failure


async def _read(
    service: SearchServices, principal: Principal, query: str, request: SearchRequest
) -> tuple[Wanted, str]:
    """Tell what a query asks for, and what of it to embed. By one side alone it is taken as it stands."""
    if request.mode is not Mode.HYBRID:
        return Wanted([] if request.mode is Mode.VECTOR else query_terms(query), weights=PLAIN), query
    read, weights = (await understand(service, principal, [query]))[0], request.weights
    names, text = (read.names, read.text) if weights.source else (frozenset[str](), query)
    return Wanted(read.terms, None, names, read.moments if weights.time else (), weights), text


async def _query_vector(
    service: SearchServices,
    caller: Caller,
    query: str,
    mode: Mode,
    model: Model,
    deadline_ms: int,
    asked: asyncio.Event,
) -> tuple[Matrix | None, str | None]:
    """Get the vector, or why there is none, in what the deadline leaves of the usual wait."""
    if mode is Mode.KEYWORD:
        return None, None
    started = time.perf_counter()
    try:
        wait = min(service.settings.embed_wait_seconds, deadline_ms / 1000)
        vectors = await service.embeddings.embed([query], caller, model=model, wait=wait, asked=asked)
    except EmbeddingUnavailable as error:
        if mode is Mode.VECTOR:
            raise
        return None, error.message
    service.embedding_latency.add(caller, (time.perf_counter() - started) * 1000)
    return vectors[0], None


def _rank(found: Found, wanted: Wanted, request: SearchRequest) -> list[Scored]:
    """Score every candidate and order memories by their best piece; ties go to the newer. Nothing matched: no hit."""
    now = redis_time.now()
    scored = [
        item
        for item in ranking.score(found.readings, wanted, found.candidates.words.statistics)
        if item.score or item.vector_score or item.keyword_score
    ]
    if request.recency_weight or request.priority_weight:
        scored = [replace(item, score=_weighed(item, request, now)) for item in scored]
    ordered = sorted(scored, key=lambda item: (-item.score, -item.record.created_at))
    best: dict[str, Scored] = {}
    for item in ordered:
        best.setdefault(item.record.id, item)
    return list(best.values())


def _weighed(item: Scored, request: SearchRequest, now: float) -> float:
    return (
        (1 - request.recency_weight - request.priority_weight) * item.score
        + request.recency_weight * ranking.recency(item.record, now, _RECENCY_HALF_LIFE)
        + request.priority_weight * ranking.importance(item.record.priority)
    )


def _cut(ranked: Sequence[Scored], request: SearchRequest) -> tuple[list[Scored], int]:
    """Apply the limit, the least score and the token budget; count what the budget alone left out."""
    wanted = [scored for scored in ranked if scored.score >= request.min_score][: request.limit]
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


def _hit(scored: Scored, principal: Principal, model: Model) -> Hit:
    return Hit(
        memory=Memory.of(scored.record, principal, model),
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
