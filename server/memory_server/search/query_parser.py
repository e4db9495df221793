"""Parses a query: names match as words, because in a vector they would outweigh the subject of the question."""

from __future__ import annotations

from collections.abc import Sequence

from memory_core.errors import InvalidArgument, MemoryServiceError
from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.scope import Principal
from memory_core.settings.settings import Settings
from memory_server.contract.arguments import SearchArguments
from memory_server.contract.validation import check_text
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import RequestContext
from memory_server.index import queries
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters
from memory_server.search.analysis import query_terms, stem, without, words
from memory_server.search.ranking import IN_CONTEXT, PLAIN, ParsedQuery, RankingWeights
from memory_server.search.services import SearchServices
from memory_server.search.time_hints import moments

_NAME_WORDS = 2  # a source with more words is a path or a title, whose words have a meaning in a query


async def parse(
    service: SearchServices, principal: Principal, args: SearchArguments, weights: RankingWeights
) -> ParsedQuery:
    """Parse a query for its mode; only `hybrid` looks for names and dates."""
    match args.mode:
        case "vector":
            return ParsedQuery(text=args.query, weights=PLAIN)
        case "keyword":
            return ParsedQuery(query_terms(args.query), text=args.query, weights=PLAIN)
        case "hybrid":
            return (await parse_all(service, principal, [args.query], weights))[0]


async def parse_all(
    service: SearchServices, principal: Principal, texts: Sequence[str], weights: RankingWeights = IN_CONTEXT
) -> list[ParsedQuery]:
    """Parse queries in one round trip, with all sources that the principal can read. Raises StoreUnavailable."""
    keys, now = Keys(principal.namespace), redis_time.now()
    terms = {text: query_terms(text) for text in texts}
    everything = build.readable(principal, ResolvedFilters(include_archive=True), now)
    asked = list(dict.fromkeys(term for each in terms.values() for term in each))
    timeout = service.settings.search_timeout_ms
    sources = await service.namespaces.search(
        principal.namespace, lambda client: queries.sources(client, keys, everything, asked, timeout)
    )
    people = {stem(term) for term, source in sources.items() if len(words(source)) <= _NAME_WORDS}
    parsed: list[ParsedQuery] = []
    for text in texts:
        names, rest = frozenset[str](), text
        if weights.source:
            names = frozenset(stem(term) for term in terms[text] if term in sources)
            rest = without(text, names & people)
        dates = moments(text, now) if weights.time else ()
        parsed.append(ParsedQuery(terms[text], names, dates, rest, weights=weights))
    return parsed


async def texts_to_embed(service: SearchServices, request: RequestContext, queries: Sequence[str]) -> list[str]:
    """Return the texts whose vectors searches for some queries will need; none if that is unknown."""
    fit = [query for query in queries if _is_query(service.settings, query)]
    try:
        if not fit or not await service.namespaces.knows(request.caller.namespace):
            return []
        await service.namespaces.get(request.caller.namespace)
        principal = await resolve(service.backend, request)
        return [parsed.text for parsed in await parse_all(service, principal, fit)]
    except MemoryServiceError:
        return []


def _is_query(settings: Settings, query: str) -> bool:
    try:
        check_text(query, "query", settings.limits.query_bytes)
    except InvalidArgument:
        return False
    return True
