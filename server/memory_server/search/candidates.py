"""Fetches what may match: candidates from Redis, sensitive memories that it cannot compare, what is around the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.vectors import to_bytes
from memory_core.store.connection import Client
from memory_server.engine.request import RequestContext
from memory_server.index import loader, queries
from memory_server.index.loader import Ref
from memory_server.index.queries import Candidates, Worded, WordStatistics
from memory_server.index.query import Query, sensitive
from memory_server.search import knn_policy, ranking
from memory_server.search.bulk_neighbours import Near, Neighbour
from memory_server.search.ranking import Reading, Wanted
from memory_server.search.sealed_search import nearest_here
from memory_server.search.services import SearchServices

DEPTH = 40
"""Candidates taken from each side before scoring; more are no better (docs/decisions/0017-ranking.md)."""
_CENTRES = 8
"""How many of the best have what stands around them fetched."""
_MOST_HERE = 20_000
"""Texts whose vectors are fetched to be compared here with a sensitive memory's, which Redis is not shown."""


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates, and what scoring needs of those that could be opened."""

    candidates: Candidates
    readings: list[Reading]


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched for, by whom and where. A `secret` vector is not shown to Redis: it is compared here. All
    vectors are of `model`, from the question to the index, even if another one begins to answer meanwhile.

    `near` finds the neighbours instead of the index. What is ranked `by_cosine` alone then needs few of them. What
    `ask_words` told goes `ahead`.
    """

    service: SearchServices
    request: RequestContext
    principal: Principal
    selected: Query
    wanted: Wanted
    model: Model
    exact: bool = False
    depth: int = DEPTH
    deadline_ms: int | None = None
    secret: bool = False
    near: Near | None = None
    by_cosine: bool = False
    ahead: Worded | None = None

    @property
    def _keys(self) -> Keys:
        return Keys(self.principal.namespace)

    @property
    def _timeout_ms(self) -> int:
        most = self.service.settings.search_timeout_ms
        return min(self.deadline_ms or most, most)

    def depth_for(self, limit: int) -> int:
        """How many candidates are taken from each side for so many hits."""
        return max(self.depth, 2 * limit)

    async def ask_words(self, depth: int) -> Worded:
        """Count, and look for words. It needs no vector, and comes back as `ahead` where that is still on its way; it
        comes before neighbours are found, since what waits for its vector may get one.

        Raises:
            StoreUnavailable: Redis does not answer, or the search was stopped at its deadline.
        """
        terms, timeout = self.wanted.terms, self._timeout_ms

        async def ask(client: Client) -> Worded:
            return await queries.by_words(
                client,
                self._keys,
                self.selected,
                model=self.model,
                terms=terms,
                depth=depth,
                timeout_ms=timeout,
                cache=self.request.cache,
            )

        return await self.service.namespaces.search(self.principal.namespace, ask)

    async def run(self, limit: int) -> Found:
        """Fetch candidates for so many hits, deeper while records that vanished leave too few.

        Raises:
            StoreUnavailable: Redis does not answer, or a search was stopped at its deadline.
        """
        near, least, words = self.near, self.depth_for(limit), self.ahead
        depth = 2 * limit if near and self.by_cosine else least
        while True:
            words = words or await self.ask_words(depth)
            neighbours = await near(depth) if near else None
            if near and neighbours is None:
                near, depth = None, least
            proposed, records = await self._fetch(depth, words, neighbours)
            enough = len({record.id for record in records}) >= limit
            if enough and neighbours and self.by_cosine:
                enough = self._outranks(records, limit, neighbours[-1][1])
            if enough or not proposed.full or depth >= queries.MAX_DEPTH:
                break
            depth *= 4
            words = None if self.wanted.terms else words
        if proposed.words.sensitive or self.secret:
            records = await self._with_sensitive(proposed, records, max(depth, least))
        found = Found(proposed, ranking.read(records, self.wanted))
        found.readings.extend(await self._around(found))
        return found

    def _outranks(self, records: list[Record], limit: int, cosine: float) -> bool:
        """Whether the best so many score at least as high as anything could that is no nearer than this."""
        scores: dict[str, float] = {}
        for item in ranking.score(ranking.read(records, self.wanted), self.wanted, WordStatistics(0, {})):
            scores[item.record.id] = max(item.score, scores.get(item.record.id, 0.0))
        return sorted(scores.values(), reverse=True)[limit - 1] >= cosine

    async def _fetch(
        self, depth: int, words: Worded, neighbours: Sequence[Neighbour] | None
    ) -> tuple[Candidates, list[Record]]:
        async def fetch(client: Client) -> tuple[Candidates, list[Record]]:
            near, warnings = await self._nearest(client, depth, words.statistics.total, neighbours)
            proposed = Candidates(
                words,
                refs=list(dict.fromkeys([*words.refs, *near])),
                full=words.full or len(near) >= depth,
                warnings=[*words.warnings, *warnings],
            )
            return proposed, await self._load(client, proposed.refs)

        return await self.service.namespaces.search(self.principal.namespace, fetch)

    async def _nearest(
        self, client: Client, depth: int, total: int, neighbours: Sequence[Neighbour] | None
    ) -> tuple[list[Ref], list[str]]:
        """Have the index find what is not known already: by comparing with all if `exact`, else in the cheaper way."""
        if neighbours is not None:
            return [ref for ref, _ in neighbours], []
        if self.wanted.vector is None or self.secret:
            return [], []
        documents = self.service.namespaces.documents(self.principal.namespace)
        return await queries.by_vector(
            client,
            self._keys,
            self.selected,
            to_bytes(self.wanted.vector),
            model=self.model,
            way=knn_policy.COMPARE if self.exact else knn_policy.choose(total, documents, depth),
            depth=depth,
            timeout_ms=self._timeout_ms,
        )

    async def _load(self, client: Client, refs: Sequence[Ref]) -> list[Record]:
        return await loader.load_readable(
            client, self._keys, refs, self.request, self.principal, self.service.backend.integrity, model=self.model
        )

    async def _with_sensitive(self, proposed: Candidates, records: list[Record], depth: int) -> list[Record]:
        """Add what Redis cannot propose, and open all."""
        selected, too_many = self.selected, proposed.words.statistics.total > _MOST_HERE
        if self.secret and too_many:
            proposed.warnings.append(f"more than {_MOST_HERE} texts; compared with sensitive ones alone")
        if not self.secret or too_many:
            selected = sensitive(selected)
        refs: list[Ref] = []
        if self.wanted.vector is None:
            proposed.warnings.append(f"{proposed.words.sensitive} sensitive texts can be found by their meaning alone")
        else:
            refs, closed = await nearest_here(
                self.service,
                self.principal.namespace,
                selected,
                self.wanted.vector,
                self.model,
                depth=depth,
                timeout_ms=self._timeout_ms,
            )
            proposed.warnings.extend(closed.warnings)
        there = {(record.id, record.part) for record in records}
        missing = [ref for ref in refs if ref not in there]
        more = await self.service.backend.read(lambda client: self._load(client, missing))
        return await self._open(proposed, [*records, *more])

    async def _around(self, found: Found) -> list[Reading]:
        """Fetch what stands around the best in their conversations and was not proposed."""
        if not self.wanted.weights.around or not self.wanted.terms:
            return []
        scored = ranking.score(found.readings, self.wanted, found.candidates.words.statistics)
        best = sorted(scored, key=lambda item: -item.score)[:_CENTRES]
        places = ranking.missing_places(best, found.readings)
        if not places:
            return []

        async def fetch(client: Client) -> list[Record]:
            refs = await queries.at_places(client, self._keys, self.selected, places, self._timeout_ms)
            return await self._load(client, refs)

        records = await self.service.namespaces.search(self.principal.namespace, fetch)
        return ranking.read(await self._open(found.candidates, records), self.wanted)

    async def _open(self, proposed: Candidates, records: list[Record]) -> list[Record]:
        """Open what is sensitive, and note what could not be."""
        if not any(record.is_sensitive for record in records):
            return records
        opened = await self.service.vault.open_all(self.principal.namespace, records)
        proposed.warnings.extend(warning for warning in opened.warnings if warning not in proposed.warnings)
        return opened.records
