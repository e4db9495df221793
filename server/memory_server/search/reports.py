"""Reports over an agent's own memories, except sensitive ones: the bulk engine holds only clear vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from memory_core.errors import InvalidArgument
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.scope import Principal
from memory_core.store.bulk_messages import Clusters, Duplicates, Found
from memory_server.contract.reports import Alike, Cluster, ClustersAnswer, DuplicatesAnswer, Text
from memory_server.engine.principals import resolve
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import RequestContext
from memory_server.index import loader
from memory_server.index.loader import Ref
from memory_server.search.bulk_neighbours import own_selection
from memory_server.search.services import SearchServices

MOST_PAIRS = 10_000
_LOAD_AT_ONCE = 500


async def near_duplicates(
    service: SearchServices, request: RequestContext, *, least: float, wait: float
) -> DuplicatesAnswer:
    """Group the caller's memories with cosines from `least`, .5 to 1. Raises InvalidArgument or BulkUnavailable."""
    if not 0.5 <= least <= 1:
        raise InvalidArgument("the minimum cosine is from 0.5 to 1", hint="0.95 finds near copies")
    principal = await resolve(service.backend, request)
    asked = Duplicates(selection=own_selection(principal), least=least, most=MOST_PAIRS)
    found = await service.bulk.duplicates(request.caller.namespace, asked, wait)
    records = await _load(service.backend, request, principal, found)
    pairs = np.frombuffer(found.pairs, dtype="<i4").reshape(-1, 2).tolist()
    scores = np.frombuffer(found.scores, dtype="<f4").tolist()
    known = [
        (left, right, score)
        for (a, b), score in zip(pairs, scores, strict=True)
        if (left := records.get(found.ids[a])) and (right := records.get(found.ids[b]))
    ]
    return DuplicatesAnswer(groups=_groups(known), pairs_left_out=found.total - len(pairs))


async def clusters(
    service: SearchServices, request: RequestContext, *, count: int, show: int, wait: float
) -> ClustersAnswer:
    """Cluster the caller's own memories, largest cluster first. Raises BulkUnavailable (no answer within `wait` s)."""
    principal = await resolve(service.backend, request)
    asked = Clusters(selection=own_selection(principal), count=count, show=show)
    found = await service.bulk.clusters(request.caller.namespace, asked, wait)
    records = await _load(service.backend, request, principal, found)
    parts = zip(found.sizes, found.closeness, found.shown, strict=True)
    return ClustersAnswer(
        clusters=[
            Cluster(size=size, closeness=closeness, examples=_texts(_known(records, found, shown)))
            for size, closeness, shown in parts
        ]
    )


async def _load(backend: Backend, request: RequestContext, principal: Principal, found: Found) -> dict[str, Record]:
    """Load current records, without those that are no longer the caller's own, or are sensitive now."""
    keys, integrity = Keys(principal.namespace), backend.integrity
    refs = [Ref(memory_id) for memory_id in dict.fromkeys(found.ids)]
    records: dict[str, Record] = {}
    for start in range(0, len(refs), _LOAD_AT_ONCE):
        part = refs[start : start + _LOAD_AT_ONCE]
        loaded = await backend.read(
            lambda client, part=part: loader.load_readable(client, keys, part, request, principal, integrity)
        )
        records |= {record.id: record for record in loaded if principal.owns(record.owner) and not record.sealed}
    return records


def _groups(pairs: Iterable[tuple[Record, Record, float]]) -> list[Alike]:
    """Join pairs that share a memory; the most alike group first."""
    group_of, best = dict[str, list[Record]](), dict[str, float]()
    for left, right, score in pairs:
        joined = group_of.setdefault(left.id, [left])
        other = group_of.setdefault(right.id, [right])
        best.setdefault(left.id, score)
        best.setdefault(right.id, score)
        if joined is not other:
            joined += other
            for record in other:
                group_of[record.id] = joined
    groups = {id(group): group for group in group_of.values()}.values()
    alike = [
        Alike(
            cosine=round(max(best[one.id] for one in group), 4),
            memories=_texts(sorted(group, key=lambda one: one.created_at)),
        )
        for group in groups
    ]
    return sorted(alike, key=lambda one: -one.cosine)


def _known(records: Mapping[str, Record], found: Found, places: Iterable[int]) -> list[Record]:
    return [records[name] for name in dict.fromkeys(found.ids[place] for place in places) if name in records]


def _texts(records: Iterable[Record]) -> list[Text]:
    return [Text(memory_id=record.id, content=record.content) for record in records]
