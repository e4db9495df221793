"""Validates the index: every record, and the recall of the graph against an exact comparison."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import islice

import numpy as np

from memory_core.records.keys import Keys
from memory_core.records.model import read_models
from memory_core.records.vectors import Matrix, to_stored
from memory_core.store.connection import store_errors
from memory_server.contract.untrusted_text import counted
from memory_server.index import queries as candidates
from memory_server.operations.health.namespaces import index_info
from memory_server.operations.health.records import RecordProblem, RecordScan
from memory_server.operations.health.report import DoctorReport, Inspection

SAMPLE, NEIGHBOURS = 20, 10
MINIMUM_RECALL = 0.95
_MOST_SHOWN = 3
_TOLERANCE = 1e-4
"""Cosines that differ by less are equal: the index rounds differently."""

Progress = Callable[[str, int, int], None]
"""Receives a namespace, how many of its records were checked, and how many it has."""

_MESSAGES = {
    RecordProblem.UNINDEXED: (
        "in no index, so search never finds them",
        "redis-memory reindex --namespace {namespace}",
    ),
    RecordProblem.INVALID: (
        "with an invalid vector (wrong dimension, NaN, or not of unit length); one of these can hide all others",
        "store them again and delete these; redis-memory reindex to another model embeds everything again",
    ),
    RecordProblem.OTHER_MODEL: ("with a vector of another model only", "redis-memory reindex --namespace {namespace}"),
    RecordProblem.MISSING: (
        "without a vector; only keyword search finds them",
        "run a server and a sidecar: the server queues them again within seconds",
    ),
    RecordProblem.FAILED: (
        "without a vector after embedding failed; only keyword search finds them",
        "fix the reason in the sidecar's log, then redis-memory reindex --namespace {namespace}",
    ),
    RecordProblem.ORPHAN: ("left of deleted memories", "delete these keys with redis-cli UNLINK"),
    RecordProblem.PIECES: (
        "with chunks missing, so search misses a part of them",
        "change their content once (update_memory), or store them again",
    ),
}


async def check_deep(inspection: Inspection, progress: Progress) -> None:
    """Validate every namespace that has an index for its model."""
    for namespace in inspection.report.namespaces:
        faulty = {finding.id for finding in inspection.report.faults if finding.where == namespace}
        if faulty.isdisjoint({"namespace.model", "index.missing", "index.building"}):
            keys = Keys(namespace)
            async with store_errors():
                models = await read_models(inspection.client, keys)
            model = models.current if models else inspection.settings.vector_store.model
            await _check(inspection, RecordScan(inspection.client, keys, inspection.settings, model), progress)


async def _check(inspection: Inspection, scan: RecordScan, progress: Progress) -> None:
    namespace, report = scan.keys.namespace, inspection.report
    info = await index_info(inspection.client, scan.keys)
    total, checked = int(info[b"num_docs"]) if info else 0, 0
    suspects: dict[str, RecordProblem] = {}
    queries: list[Matrix] = []
    async for names in scan.batches():
        suspects |= await scan.problems(names)
        if len(queries) < SAMPLE:
            found, vectors = await scan.vectors(names)
            valid = (vector for name, vector in zip(found, vectors, strict=True) if name not in suspects)
            queries += islice(valid, SAMPLE - len(queries))  # the scan order of Redis is random enough
        checked += len(names)
        progress(namespace, checked, max(total, checked))
    problems = {name: kind for name, kind in suspects.items() if (await scan.problems([name])).get(name) == kind}
    by_kind: defaultdict[RecordProblem, list[str]] = defaultdict(list)
    for name, kind in problems.items():
        by_kind[kind].append(name)
    for kind, names in sorted(by_kind.items()):
        message, remedy = _MESSAGES[kind]
        shown = ", ".join(names[:_MOST_SHOWN]) + (", …" if len(names) > _MOST_SHOWN else "")
        seen, remedy = f"{counted(len(names), 'record')} {message}: {shown}", remedy.format(namespace=namespace)
        report.error(f"deep.{kind}", seen, remedy, where=namespace)
    if not problems:
        report.ok(
            "deep.records",
            f"{counted(checked, 'record is', 'records are')} indexed, with valid vectors and all chunks",
            where=namespace,
        )
    if queries and RecordProblem.INVALID not in by_kind:
        await _check_neighbours(report, scan, np.stack(queries))


async def _check_neighbours(report: DoctorReport, scan: RecordScan, queries: Matrix) -> None:
    best = np.full((len(queries), NEIGHBOURS), -np.inf, dtype=np.float32)
    async for names in scan.batches():
        _, vectors = await scan.vectors(names)
        if len(vectors):
            both = np.concatenate([best, queries @ vectors.T], axis=1)
            best = -np.sort(-both, axis=1)[:, :NEIGHBOURS]
    found, expected, timeout = 0, int(np.isfinite(best).sum()), scan.settings.search_timeout_ms
    for query, row in zip(queries, best, strict=True):
        async with store_errors():
            near = await candidates.graph_neighbours(
                scan.client, scan.keys, to_stored(query, scan.model), model=scan.model, k=NEIGHBOURS, timeout_ms=timeout
            )
        least = row[np.isfinite(row)].min() - _TOLERANCE
        found += min(sum(cosine >= least for _, cosine in near), int(np.isfinite(row).sum()))
    recall, where = found / max(expected, 1), scan.keys.namespace
    seen = f"recall@{NEIGHBOURS} of the graph is {recall:.1%}, over {counted(len(queries), 'query')}"
    remedy = f"raise vector_store.hnsw.ef_construction and m, then redis-memory reindex --namespace {where}"
    report.check(recall >= MINIMUM_RECALL, "deep.recall", seen, remedy, where=where)
