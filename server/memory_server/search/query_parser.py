"""Parses a query before anything is searched: names are matched as such, and only the rest by meaning.

A name occurs in every turn of its speaker, so in a vector it drowns what the question is about.
"""

from __future__ import annotations

from collections.abc import Sequence

from memory_core.errors import InvalidArgument, MemoryServiceError
from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.scope import Principal
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_server.contract.arguments import SearchArguments
from memory_server.contract.validation import check_text
from memory_server.engine.principals import resolve
from memory_server.engine.request import RequestContext
from memory_server.index import queries
from memory_server.index import query as build
from memory_server.index.filters import ResolvedFilters
from memory_server.search.analysis import query_terms, stem, without, words
from memory_server.search.ranking import IN_CONTEXT, PLAIN, ParsedQuery, RankingWeights
from memory_server.search.services import SearchServices
from memory_server.search.time_hints import moments

_NAME_WORDS = 2
"""A source of more words is a path or a title, whose words mean something in a query too."""


async def parse(
    service: SearchServices, principal: Principal, args: SearchArguments, weights: RankingWeights
) -> ParsedQuery:
    """Parse a query for its mode: by vectors or words alone it is taken unchanged."""
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
    """Parse queries in one round trip. Sources count that the principal can read, whatever a search is narrowed to.

    Raises StoreUnavailable.
    """
    keys, now = Keys(principal.namespace), redis_time.now()
    terms = {text: query_terms(text) for text in texts}
    everything = build.readable(principal, ResolvedFilters(include_archive=True), now)
    asked = list(dict.fromkeys(term for each in terms.values() for term in each))

    async def fetch(client: Client) -> dict[str, str]:
        return await queries.sources(client, keys, everything, asked, service.settings.search_timeout_ms)

    sources = await service.namespaces.search(principal.namespace, fetch)
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
    """Give the texts whose vectors searches for some queries will need; none where that cannot be known."""
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
