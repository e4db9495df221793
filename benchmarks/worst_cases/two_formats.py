"""Worst cases of a namespace that keeps its vectors in two formats, each in an index of its own."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.worst_cases.busy_namespace import BusyNamespace, Call, limit_of, worst
from benchmarks.worst_cases.memories import COMMITTED, commit
from memory_core.settings.settings import VectorStoreSettings
from memory_core.store.index import ensure_index

CONVERTED = limit_of("operations.reembed", "_CONVERTED_AT_ONCE")
_OWNER = "agent-0002"


async def _keep_two_formats(team: BusyNamespace) -> None:
    """Begin a change of the vectors from float32, as sidecars then send them, to half precision."""
    if not team.model.half:
        return
    half, team.model = team.model, replace(team.model, half=False)
    meta = {
        "field": team.model.field, "version": 1, "other_model": half.name, "other_field": half.field,
        "other_dimension": half.dimension, "other_version": 2, "phase": "building",
    }  # fmt: skip
    await team.client.hset(team.keys.meta, mapping=meta)
    await ensure_index(team.client, team.keys, replace(half, version=2), VectorStoreSettings(), scan=False)


@worst("rm1_store", "1 MiB and a vector, in two formats", "limits.content_bytes")
async def _store(team: BusyNamespace) -> Call:
    await _keep_two_formats(team)
    return team.store(_OWNER, long=True)


@worst("rm1_commit", f"{COMMITTED} vectors of memories of 1 MiB, in two formats", "streams/jobs.py, COMMIT_AT_ONCE")
async def _commit(team: BusyNamespace) -> Call:
    await _keep_two_formats(team)
    return await commit(team)


@worst("rm1_convert_vectors", f"{CONVERTED} memories of 1 MiB, to half precision", "operations/reembed.py, a slice")
async def _convert(team: BusyNamespace) -> Call:
    await _keep_two_formats(team)
    return await _converting(team, replace(team.model, half=True).field)


@worst("rm1_convert_vectors", f"{CONVERTED} memories of 1 MiB, to float32", "operations/reembed.py, a slice")
async def _convert_back(team: BusyNamespace) -> Call:
    await _keep_two_formats(team)
    return await _converting(team, team.model.field)


async def _converting(team: BusyNamespace, lost: str) -> Call:
    """A call of rm1_convert_vectors for memories without the vector in one field."""
    ids = await team.stored(CONVERTED, _OWNER)
    for memory_id in ids:
        await team.client.hdel(team.keys.memory(memory_id), lost)
    return Call([team.keys.memory(one) for one in ids], {"model": team.model.name}, {"status": "ok"})
