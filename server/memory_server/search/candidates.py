"""Fetches candidates: from Redis, sensitive memories that Redis cannot compare, and the turns around the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.vectors import to_stored
from memory_core.redis_client import Client
from memory_server.contract.untrusted_text import counted
from memory_server.engine.request_context import RequestContext
from memory_server.index import loader, queries
from memory_server.index.loader import Ref
from memory_server.index.queries import WordMatches, WordStatistics
from memory_server.index.query_builder import Query, sensitive
from memory_server.search import knn_policy, ranking
from memory_server.search.bulk_neighbours import Neighbour, NeighbourSource
from memory_server.search.ranking import ParsedQuery, RecordFeatures
from memory_server.search.sealed_search import nearest_here
from memory_server.search.services import SearchServices

DEPTH = 40
"""Candidates taken from each side before scoring; more do not help (docs/decisions/0017-ranking.md)."""
_CENTRES = 8  # how many of the best candidates get their surrounding turns
_MOST_HERE = 20_000  # at most so many vectors are fetched to compare them here with a sensitive memory's


@dataclass(slots=True)
class Candidates:
    """Chunks that may match and could be opened, with their features for scoring. `full`: more may exist."""

    words: WordMatches
    records: list[Record]
    full: bool
    warnings: list[str]
    features: list[RecordFeatures] = field(default_factory=list[RecordFeatures])


@dataclass(frozen=True, slots=True)
class Search:
    """A query, its caller and its selection. All vectors are of `model`, even if the namespace's model changes.

    A `secret` vector is compared here and never sent to Redis. `neighbours` replaces the index as their source; a
    search ranked `by_cosine` needs few of them. `words` are matches to `depth` that were already fetched.
    """

    service: SearchServices
    request: RequestContext
    principal: Principal
    selected: Query
    query: ParsedQuery
    model: Model
    depth: int
    timeout_ms: int
    exact: bool = False
    secret: bool = False
    by_cosine: bool = False
    neighbours: NeighbourSource | None = None
    words: WordMatches | None = None

    @property
    def _namespace(self) -> str:
        return self.principal.namespace

    async def match_words(self, depth: int) -> WordMatches:
        """Count the selection and match words, before neighbours: waiting memories may get vectors meanwhile."""
        return await self.service.namespaces.search(
            self._namespace,
            lambda client: queries.by_words(
                client,
                Keys(self._namespace),
                self.selected,
                model=self.model,
                terms=self.query.terms,
                depth=depth,
                timeout_ms=self.timeout_ms,
                cache=self.request.cache,
            ),
        )

    async def run(self, limit: int) -> Candidates:
        """Fetch candidates for so many hits, and more while vanished records leave too few. Raises StoreUnavailable."""
        source, words = self.neighbours, self.words
        depth = 2 * limit if source and self.by_cosine else self.depth
        while True:
            words = words or await self.match_words(depth)
            neighbours = await source(depth) if source else None
            if source and neighbours is None:
                source, depth = None, self.depth
            found = await self._fetch(depth, words, neighbours)
            enough = len({record.id for record in found.records}) >= limit
            if enough and neighbours and self.by_cosine:
                enough = self._outranks(found.records, limit, neighbours[-1][1])
            if enough or not found.full or depth >= queries.MAX_DEPTH:
                break
            depth *= 4
            words = None if self.query.terms else words
        if words.sensitive or self.secret:
            await self._add_sensitive(found, max(depth, self.depth))
        found.features = ranking.features_of(found.records, self.query)
        await self._add_turns(found)
        return found

    def _outranks(self, records: list[Record], limit: int, cosine: float) -> bool:
        """Whether the best `limit` records score at least as high as any record that is not nearer than `cosine`."""
        scores: dict[str, float] = {}
        features = ranking.features_of(records, self.query)
        for item in ranking.score(features, self.query, WordStatistics(0, {})):
            scores[item.record.id] = max(item.score, scores.get(item.record.id, 0.0))
        return sorted(scores.values(), reverse=True)[limit - 1] >= cosine

    async def _fetch(self, depth: int, words: WordMatches, neighbours: Sequence[Neighbour] | None) -> Candidates:
        """Load the matches of the words and the neighbours; the index finds these if they are not given."""
        vector = None if self.secret else self.query.vector
        total, documents = words.statistics.total, self.service.namespaces.documents(self._namespace)

        async def fetch(client: Client) -> Candidates:
            near, warnings = [ref for ref, _ in neighbours or ()], list[str]()
            if neighbours is None and vector is not None:
                near, warnings = await queries.by_vector(
                    client,
                    Keys(self._namespace),
                    self.selected,
                    to_stored(vector, self.model),
                    model=self.model,
                    way=knn_policy.COMPARE if self.exact else knn_policy.choose(total, documents, depth),
                    depth=depth,
                    timeout_ms=self.timeout_ms,
                )
            records = await self._load(client, list(dict.fromkeys([*words.refs, *near])))
            full = words.full or len(near) >= depth
            return Candidates(words, records, full, [*words.warnings, *warnings])

        return await self.service.namespaces.search(self._namespace, fetch)

    async def _load(self, client: Client, refs: Sequence[Ref]) -> list[Record]:
        integrity = self.service.backend.integrity
        return await loader.load_readable(
            client, Keys(self._namespace), refs, self.request, self.principal, integrity, model=self.model
        )

    async def _add_sensitive(self, found: Candidates, depth: int) -> None:
        """Add sensitive memories, which Redis cannot compare, and open all."""
        selected, too_many = self.selected, found.words.statistics.total > _MOST_HERE
        if self.secret and too_many:
            found.warnings.append(f"more than {_MOST_HERE} texts; compared with sensitive ones only")
        if not self.secret or too_many:
            selected = sensitive(selected)
        refs: list[Ref] = []
        if self.query.vector is None:
            texts = counted(found.words.sensitive, "sensitive text")
            found.warnings.append(f"{texts} can be found only by meaning")
        else:
            refs, closed = await nearest_here(
                self.service, self._namespace, selected, self.query.vector, self.model, depth, self.timeout_ms
            )
            found.warnings.extend(closed.warnings)
        known = {(record.id, record.part) for record in found.records}
        missing = [ref for ref in refs if ref not in known]
        more = await self.service.backend.read(lambda client: self._load(client, missing))
        found.records = await self._open(found, [*found.records, *more])

    async def _add_turns(self, found: Candidates) -> None:
        if not self.query.weights.around or not self.query.terms:
            return
        scored = ranking.score(found.features, self.query, found.words.statistics)
        best = sorted(scored, key=lambda item: -item.score)[:_CENTRES]
        turns = ranking.missing_turns(best, found.features)
        if not turns:
            return

        async def fetch(client: Client) -> list[Record]:
            refs = await queries.at_turns(client, Keys(self._namespace), self.selected, turns, self.timeout_ms)
            return await self._load(client, refs)

        records = await self.service.namespaces.search(self._namespace, fetch)
        found.features += ranking.features_of(await self._open(found, records), self.query)

    async def _open(self, found: Candidates, records: list[Record]) -> list[Record]:
        if not any(record.is_sensitive for record in records):
            return records
        opened = await self.service.vault.open_all(self._namespace, records)
        found.warnings.extend(warning for warning in opened.warnings if warning not in found.warnings)
        return opened.records
