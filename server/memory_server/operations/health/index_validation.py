"""Validates the index itself: all records against it, and its nearest neighbours against an exact comparison."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from memory_core.records.keys import Keys
from memory_core.records.model import Model, read_models
from memory_core.records.vectors import Matrix, to_bytes
from memory_core.store.connection import store_errors
from memory_server.index import queries as candidates
from memory_server.operations.health.namespaces import Looking, index_info
from memory_server.operations.health.records import Problem, Walk

SAMPLE, NEAREST = 20, 10
LEAST_RECALL = 0.95
_SHOWN = 3
_ALIKE = 1e-4
"""Cosines that differ by less are equal: the index computes with other roundings."""

Tell = Callable[[str, int, int], None]
"""Told the namespace, how many of its records were looked at, and of how many."""

_SAID = {
    Problem.UNINDEXED: ("are in no index, and never found", "redis-memory reindex --namespace {namespace}"),
    Problem.INVALID: (
        "have a vector of a wrong length, with NaN or not of unit length; one of these can hide all others",
        "store them anew and clear these; redis-memory reindex to another model embeds all anew",
    ),
    Problem.OTHER_MODEL: ("have a vector of another model alone", "redis-memory reindex --namespace {namespace}"),
    Problem.MISSING: (
        "have no vector, and are found by words only",
        "have a server and a sidecar run: the server asks again for them within seconds",
    ),
    Problem.ORPHAN: ("are pieces of memories that are gone", "remove them: redis-cli UNLINK and these keys"),
    Problem.PIECES: (
        "lack pieces, which are not found",
        "change their content once (update_memory), or store them anew",
    ),
}


async def check_deep(looking: Looking, tell: Tell) -> None:
    """Validate all namespaces that have an index for this model."""
    for namespace in looking.report.namespaces:
        faulty = {finding.id for finding in looking.report.faults if finding.where == namespace}
        if faulty.isdisjoint({"namespace.model", "index.missing", "index.building"}):
            keys = Keys(namespace)
            async with store_errors():
                models = await read_models(looking.client, keys)
            model = models.current if models else Model.configured(looking.settings.vector_store)
            await _check(looking, Walk(looking.client, keys, looking.settings, model), tell)


async def _check(looking: Looking, walk: Walk, tell: Tell) -> None:
    namespace, report = walk.keys.namespace, looking.report
    info = await index_info(looking.client, walk.keys)
    total, seen = int(info[b"num_docs"]) if info else 0, 0
    suspects: dict[str, Problem] = {}
    queries: list[Matrix] = []
    async for names in walk.slices():
        suspects |= await walk.problems(names)
        if len(queries) < SAMPLE:
            queries += _sample(*await walk.vectors(names), suspects, SAMPLE - len(queries))
        seen += len(names)
        tell(namespace, seen, max(total, seen))
    problems = {name: what for name, what in suspects.items() if (await walk.problems([name])).get(name) == what}
    by_kind: defaultdict[Problem, list[str]] = defaultdict(list)
    for name, what in problems.items():
        by_kind[what].append(name)
    for what, names in sorted(by_kind.items()):
        said, remedy = _SAID[what]
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        report.fault(
            f"deep.{what}", f"{len(names)} {said}: {shown}", remedy.format(namespace=namespace), where=namespace
        )
    if not problems:
        report.well("deep.records", f"{seen} records are indexed, with valid vectors and all pieces", where=namespace)
    if queries and Problem.INVALID not in by_kind:
        await _check_neighbours(looking, walk, np.stack(queries))


def _sample(names: list[str], vectors: Matrix, suspects: dict[str, Problem], most: int) -> list[Matrix]:
    """Take some sound vectors; the order in which Redis walks its keys is as good as random."""
    return [vector for name, vector in zip(names, vectors, strict=True) if name not in suspects][:most]


async def _check_neighbours(looking: Looking, walk: Walk, queries: Matrix) -> None:
    """Compare the graph's nearest with the truly nearest, over all records of the namespace."""
    best = np.full((len(queries), NEAREST), -np.inf, dtype=np.float32)
    async for names in walk.slices():
        _, vectors = await walk.vectors(names)
        if len(vectors):
            both = np.concatenate([best, queries @ vectors.T], axis=1)
            best = -np.sort(-both, axis=1)[:, :NEAREST]
    found, wanted = 0, int(np.isfinite(best).sum())
    for query, row in zip(queries, best, strict=True):
        async with store_errors():
            near = await candidates.graph_neighbours(
                looking.client,
                walk.keys,
                to_bytes(query),
                model=walk.model,
                k=NEAREST,
                timeout_ms=looking.settings.search_timeout_ms,
            )
        least = row[np.isfinite(row)].min() - _ALIKE
        found += min(sum(cosine >= least for _, cosine in near), int(np.isfinite(row).sum()))
    recall, where = found / max(wanted, 1), walk.keys.namespace
    seen = f"the graph finds {recall:.1%} of the {NEAREST} truly nearest, over {len(queries)} queries"
    if recall < LEAST_RECALL:
        remedy = f"raise vector_store.hnsw.ef_construction and m, then redis-memory reindex --namespace {where}"
        looking.report.fault("deep.recall", seen, remedy, where=where)
    else:
        looking.report.well("deep.recall", seen, where=where)
