"""Reads a query before anything is searched: what it names is matched as such, and only the rest by meaning.

A name stands in every turn of its speaker, so in a vector it drowns what the question is about.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memory_core.errors import InvalidArgument, MemoryServiceError
from memory_core.records.keys import Keys
from memory_core.records.scope import Principal
from memory_core.settings.settings import Settings
from memory_core.store import redis_time
from memory_core.store.connection import Client
from memory_server.contract.validation import check_text
from memory_server.engine.principals import resolve
from memory_server.engine.request import RequestContext
from memory_server.index import queries as candidates
from memory_server.index import query as build
from memory_server.search.analysis import query_terms, stem, without, words
from memory_server.search.services import SearchServices
from memory_server.search.time_hints import Moments, moments

_NAME_WORDS = 2
"""A source of more words is a path or a title, whose words mean something in a query too."""


@dataclass(frozen=True, slots=True)
class Understood:
    """A query's words, the stems that stand in a source, the times that it names, and what to embed of it."""

    terms: Sequence[str]
    names: frozenset[str]
    moments: Moments
    text: str


async def understand(service: SearchServices, principal: Principal, queries: Sequence[str]) -> list[Understood]:
    """Read some queries in one round trip. Sources count that the principal can read, whatever a search is narrowed to.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    keys, now = Keys(principal.namespace), redis_time.now()
    terms = {query: query_terms(query) for query in queries}
    everything = build.readable(principal, build.Filters(include_archive=True), now)
    asked = list(dict.fromkeys(term for each in terms.values() for term in each))

    async def fetch(client: Client) -> dict[str, str]:
        return await candidates.sources(client, keys, everything, asked, service.settings.search_timeout_ms)

    sources = await service.namespaces.search(principal.namespace, fetch)
    people = {stem(term) for term, source in sources.items() if len(words(source)) <= _NAME_WORDS}
    return [_understood(query, terms[query], sources.keys(), people, now) for query in queries]


async def texts_to_embed(service: SearchServices, request: RequestContext, queries: Sequence[str]) -> list[str]:
    """Give the texts whose vectors searches for some queries will want; none where that cannot be told."""
    fit = [query for query in queries if _is_query(service.settings, query)]
    try:
        if not fit or not await service.namespaces.knows(request.caller.namespace):
            return []
        await service.namespaces.get(request.caller.namespace)
        principal = await resolve(service.backend, request)
        return [understood.text for understood in await understand(service, principal, fit)]
    except MemoryServiceError:
        return []


def _is_query(settings: Settings, query: str) -> bool:
    try:
        check_text(query, "query", settings.limits.query_bytes)
    except InvalidArgument:
        return False
    return True


def _understood(
    query: str, terms: Sequence[str], named: Collection[str], people: Collection[str], now: float
) -> Understood:
    names = frozenset(stem(term) for term in terms if term in named)
    return Understood(terms, names, moments(query, now), without(query, names & set(people)))
