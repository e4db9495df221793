"""Searches by meaning and by words, and finds memories similar to a memory or a vector."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memory_core.cancellation import both
from memory_core.errors import BulkUnavailable, EmbeddingUnavailable, InvalidArgument
from memory_core.records import redis_time
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.vectors import Matrix
from memory_server.contract.answer import partial_reason
from memory_server.contract.arguments import SearchArguments, SimilarArguments
from memory_server.contract.memories import Hit, Memory, SearchAnswer, Took
from memory_server.contract.tokens import DEFAULT_MAX_TOKENS
from memory_server.contract.untrusted_text import counted
from memory_server.contract.validation import check_limit, check_text
from memory_server.engine.batch_cache import now
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import Caller, RequestContext, reports_integrity
from memory_server.index import queries
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters, resolve_filters
from memory_server.index.queries import WordMatches
from memory_server.search import ranking
from memory_server.search.bulk_neighbours import batch_neighbours, exact_neighbours
from memory_server.search.candidates import DEPTH, Candidates, Search
from memory_server.search.query_parser import parse
from memory_server.search.ranking import IN_CONTEXT, PLAIN, ParsedQuery, RankingWeights, ScoredRecord
from memory_server.search.services import SearchServices
from memory_server.security.open_records import load_readable, no_memory

_RERANK_DEPTH = 400
_FEW = 16
_HIT_TOKENS = DEFAULT_MAX_TOKENS // 20
"""Tokens for each hit that a caller asks for, where it can name no budget."""
_OWN_WORDS = 40
"""Tokens of the words that say what was left out."""
_RECENCY_HALF_LIFE = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class _Results:
    """The hits of a search, why it may be incomplete, and the milliseconds of each stage."""

    hits: list[ScoredRecord]
    reason: str | None
    model: Model
    embed_ms: float
    search_ms: float
    rank_ms: float


@reads
@reports_integrity
async def semantic_search(
    service: SearchServices, request: RequestContext, args: SearchArguments, *, weights: RankingWeights = IN_CONTEXT
) -> SearchAnswer:
    """Find memories that the caller may read, best first. Without a sidecar a hybrid search uses only words.

    Raises InvalidArgument, EmbeddingUnavailable (vector mode, and no sidecar answered) or StoreUnavailable.
    """
    started = time.perf_counter()
    if args.recency_weight + args.priority_weight > 1:
        raise InvalidArgument("recency_weight and priority_weight add up to more than 1", hint="lower one of them")
    check_limit(args.limit, service.settings)
    check_text(args.query, "query", service.settings.limits.query_bytes)
    principal = await resolve(service.backend, request)
    filters = await resolve_filters(service.backend, principal, args)
    if not await service.namespaces.knows(request.caller.namespace):
        return SearchAnswer(hits=[], **filters.period)
    selected = build.readable(principal, filters, now(request.cache))
    found = await _find(service, request, principal, selected, args, filters=filters, weights=weights)
    service.touch(request.caller, [hit.record.id for hit in found.hits])
    total_ms = (time.perf_counter() - started) * 1000
    service.search_latency.add(request.caller, total_ms)
    service.counters.searched(understand=found.embed_ms, search=found.search_ms, rank=found.rank_ms)
    answer = SearchAnswer(
        hits=[_hit(scored, principal, found.model) for scored in found.hits],
        took_ms=Took(embed=found.embed_ms, search=found.search_ms, rerank=found.rank_ms, total=total_ms),
        partial=bool(found.reason),
        reason=found.reason,
        **filters.period,
    )
    return _within(answer, args.max_tokens)


@reads
@reports_integrity
async def find_similar(service: SearchServices, request: RequestContext, args: SimilarArguments) -> SearchAnswer:
    """Find the nearest to a readable memory. Raises NotFound or EmbeddingUnavailable (its vector is pending)."""
    started = time.perf_counter()
    if not await service.namespaces.knows(request.caller.namespace):
        raise no_memory(args.memory_id)
    prepared = await service.namespaces.get(request.caller.namespace)
    principal = await resolve(service.backend, request)
    model = await service.models.current(request.caller.namespace)
    record = await load_readable(service, request, principal, args.memory_id, model=model)
    if model.has_failed(record.state):
        hint = "search for its words, or update it, which tries again"
        raise EmbeddingUnavailable("this memory has no vector: it could not be embedded", hint=hint)
    if record.vector is None:
        hint = "try again shortly, or see gpu_status"
        raise EmbeddingUnavailable("this memory still waits for its vector", hint=hint, retry_after=2.0)
    filters = await resolve_filters(service.backend, principal, args)
    vector, exact = queries.vector_of(record), args.exact and not record.is_sensitive
    search = Search(
        service,
        request,
        principal,
        build.readable(principal, filters, redis_time.now()),
        ParsedQuery(vector=vector, weights=PLAIN),
        model,
        depth=max(DEPTH, 2 * (args.limit + 1)),
        timeout_ms=service.settings.search_timeout_ms,
        exact=args.exact,
        secret=record.is_sensitive,
        by_cosine=True,
        neighbours=exact_neighbours(service, principal, filters, vector, model) if exact else None,
    )
    note: str | None = None
    try:
        found = await search.run(args.limit + 1)
    except BulkUnavailable as error:
        found = await replace(search, neighbours=None).run(args.limit + 1)
        note = f"compared by Redis, which is slower: {error.message}"
    others = [scored for scored in _rank(found, search.query) if scored.record.id != record.id]
    hits = [scored for scored in others if scored.score >= args.min_score][: args.limit]
    service.touch(request.caller, [scored.record.id for scored in hits])
    total_ms = (time.perf_counter() - started) * 1000
    waiting, failed, progress = found.words.waiting, found.words.failed, await service.namespaces.covered(prepared)
    reason = partial_reason(progress, found.warnings, waiting=waiting, failed=failed)
    answer = SearchAnswer(
        hits=[_hit(scored, principal, model) for scored in hits],
        took_ms=Took(search=total_ms, total=total_ms),
        partial=bool(reason),
        reason="; ".join(filter(None, (reason, note))) or None,
        **filters.period,
    )
    return _within(answer, max(DEFAULT_MAX_TOKENS, args.limit * _HIT_TOKENS))


def _within(answer: SearchAnswer, most: int) -> SearchAnswer:
    """Leave out hits until the answer takes at most so many tokens. Shorter hits may follow one that is left out."""
    if not most or answer.tokens(most) <= most:
        return answer
    kept, empty = list[Hit](), answer.model_copy(update={"hits": [], "partial": True, "reason": answer.reason or ""})
    room = most - empty.tokens() - _OWN_WORDS
    for hit in answer.hits:
        cost = SearchAnswer(hits=[hit]).tokens()
        if cost <= room:
            room -= cost
            kept.append(hit)
    left_out = f"{counted(len(answer.hits) - len(kept), 'hit')} did not fit into max_tokens"
    if not kept:
        left_out += "; a hit takes some hundred tokens or more, so raise it"
    reason = "; ".join(filter(None, (answer.reason, left_out)))
    return answer.model_copy(update={"hits": kept, "partial": True, "reason": reason})


async def nearest(
    service: SearchServices,
    request: RequestContext,
    principal: Principal,
    vector: Matrix,
    model: Model,
    limit: int,
) -> list[ScoredRecord]:
    """Find the readable memories nearest to a vector of `model`, shape (dimension,)."""
    selected = build.readable(principal, ResolvedFilters(), redis_time.now())
    query, depth = ParsedQuery(vector=vector, weights=PLAIN), max(_FEW, 2 * limit)
    timeout_ms = service.settings.search_timeout_ms
    search = Search(service, request, principal, selected, query, model, depth, timeout_ms)
    return _rank(await search.run(limit), query)[:limit]


async def best_of(
    service: SearchServices, request: RequestContext, principal: Principal, selected: build.Query, text: str, limit: int
) -> tuple[list[ScoredRecord], str | None]:
    """Find matches of a text within a selection, best first, and why they may be incomplete."""
    args = SearchArguments(query=text, limit=limit)
    found = await _find(service, request, principal, selected, args)
    return found.hits, found.reason


async def _find(
    service: SearchServices,
    request: RequestContext,
    principal: Principal,
    selected: build.Query,
    args: SearchArguments,
    *,
    filters: ResolvedFilters | None = None,
    weights: RankingWeights = IN_CONTEXT,
) -> _Results:
    """Search within a selection. A batch uses the bulk engine if the `filters` of the selection are given."""
    prepared = await service.namespaces.get(request.caller.namespace)
    model = await service.models.current(request.caller.namespace)
    began = time.perf_counter()
    timeout_ms = service.settings.search_timeout_ms
    ends = began + (args.deadline_ms or timeout_ms) / 1000

    def left() -> int:
        return min(max(int((ends - time.perf_counter()) * 1000), 1), timeout_ms)

    query = await parse(service, principal, args, weights)
    search = Search(
        service,
        request,
        principal,
        selected,
        query,
        model,
        depth=max(_RERANK_DEPTH if args.rerank else DEPTH, 2 * args.limit),
        timeout_ms=left(),
        exact=args.rerank,
    )
    asked = asyncio.Event()

    async def embed() -> tuple[Matrix | None, str | None]:
        wait = min(service.settings.embed_wait_seconds, max(ends - time.perf_counter(), 0.001))
        try:
            if args.mode == "keyword":
                return None, None
            return await _query_vector(service, request.caller, query.text, model, wait, asked), None
        except EmbeddingUnavailable as error:
            if args.mode == "vector":
                raise
            return None, error.message
        finally:
            asked.set()

    async def words() -> WordMatches:
        await asked.wait()
        return await search.match_words(search.depth)

    (vector, failure), matched = await both(embed(), words())
    query = replace(query, vector=vector)
    embedded = time.perf_counter()
    neighbours = None
    if filters and not args.rerank:
        neighbours = await batch_neighbours(service, request.cache, principal, filters, vector, model)
    searching = time.perf_counter()
    by_cosine = query.is_vector_alone and not (args.recency_weight or args.priority_weight)
    search = replace(search, query=query, timeout_ms=left(), by_cosine=by_cosine, neighbours=neighbours, words=matched)
    found = await search.run(args.limit)
    ranking_began = time.perf_counter()
    hits = _cut(_rank(found, query, args), args)
    ended = time.perf_counter()
    waiting, failed = (found.words.waiting, found.words.failed) if args.mode != "keyword" else (0, 0)
    progress = await service.namespaces.covered(prepared)
    return _Results(
        hits,
        partial_reason(progress, found.warnings, failure=failure, waiting=waiting, failed=failed),
        model,
        embed_ms=(embedded - began) * 1000,
        search_ms=(ranking_began - searching) * 1000,
        rank_ms=(ended - ranking_began) * 1000,
    )


async def _query_vector(
    service: SearchServices, caller: Caller, text: str, model: Model, wait: float, asked: asyncio.Event
) -> Matrix:
    started = time.perf_counter()
    vectors = await service.embeddings.embed([text], caller, model=model, wait=wait, asked=asked)
    service.embedding_latency.add(caller, (time.perf_counter() - started) * 1000)
    return vectors[0]


def _rank(found: Candidates, query: ParsedQuery, args: SearchArguments | None = None) -> list[ScoredRecord]:
    """Score candidates and order memories by their best chunk, newest first among equals; drop non-matches."""
    at = redis_time.now()
    scored = [
        item
        for item in ranking.score(found.features, query, found.words.statistics)
        if item.score or item.vector_score or item.keyword_score
    ]
    if args and (args.recency_weight or args.priority_weight):
        match_weight = 1 - args.recency_weight - args.priority_weight
        scored = [
            replace(
                item,
                score=match_weight * item.score
                + args.recency_weight * ranking.recency(item.record, at, _RECENCY_HALF_LIFE)
                + args.priority_weight * ranking.importance(item.record.priority),
            )
            for item in scored
        ]
    best: dict[str, ScoredRecord] = {}
    for item in sorted(scored, key=lambda item: (-item.score, -item.record.created_at)):
        best.setdefault(item.record.id, item)
    return list(best.values())


def _cut(ranked: Sequence[ScoredRecord], args: SearchArguments) -> list[ScoredRecord]:
    """Apply the limit and the minimum score."""
    return [scored for scored in ranked if scored.score >= args.min_score][: args.limit]


def _hit(scored: ScoredRecord, principal: Principal, model: Model) -> Hit:
    return Hit(
        memory=Memory.of(scored.record, principal, model),
        score=scored.score,
        vector_score=scored.vector_score,
        keyword_score=scored.keyword_score,
        part=scored.record.part if scored.record.chunks > 1 else None,
    )
