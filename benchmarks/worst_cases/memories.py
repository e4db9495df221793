"""Worst cases of memories, chunks, vectors and data keys."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.worst_cases.busy_namespace import (
    CONTENT_BYTES,
    GRACE,
    BusyNamespace,
    Call,
    agent,
    limit_of,
    worst,
)
from memory_core.records.ids import new_id
from memory_core.records.keys import GROUP, digest
from memory_core.records.memory import SEALED_CODEC
from memory_core.records.names import SEPARATOR
from memory_core.records.times import to_redis
from memory_server.memories.clear import DELETED_AT_ONCE as DELETED
from memory_server.memories.record_encoder import flat

CHUNKS = limit_of("memories.chunks", "_SLICE")
TEXTS = limit_of("operations.reembed", "_TEXTS_AT_ONCE")
MARKED = limit_of("operations.reindex", "_SLICE")
REQUEUED, LOST = limit_of("operations.embed_jobs", "_AT_ONCE"), limit_of("operations.embed_jobs", "MOST_JOBS")
ADOPTED = limit_of("operations.verify_integrity", "_ADOPTED_AT_ONCE")
TOUCHED = limit_of("service", "_TOUCHES_PER_CALL")
CACHED, CACHES = limit_of("engine.sidecars.vector_cache", "_AT_ONCE"), 200
_MOST_CACHED = 1000
"""The most that the setting for one agent allows."""
LIMIT = "limits.content_bytes"
COMMITTED, PASSED_ON = 8, 128
_OWNER = agent(2)


@worst("rm1_store", "1 MiB, 16 KiB metadata, 32 tags, a vector", LIMIT)
async def _store(team: BusyNamespace) -> Call:
    return team.store(_OWNER, long=True)


@worst("rm1_update", "new text of 1 MiB under one of 256 grants", LIMIT)
async def _update(team: BusyNamespace) -> Call:
    holder, owner = agent(0), agent(500)
    (memory_id,) = await team.stored(1, owner)
    grant = new_id()
    for other in await team.client.hkeys(team.keys.granted(holder)):
        if other.decode() not in team.held:
            await team.client.hdel(team.keys.granted(holder), other)
    await team.grants({grant: (holder, team.entry(grant, owner, holder, [f"i:{memory_id}"]))})
    return await update(team, memory_id, owner, holder, [*team.held, grant])


@worst("rm1_update", f"a new tag of a memory that {PASSED_ON} grants pass on", "MOST.passing of 32_grant_limits.lua")
async def _narrow(team: BusyNamespace) -> Call:
    owner, between = agent(500), agent(3)
    (memory_id,) = await team.stored(1, owner)
    parent = new_id()
    await team.grants({parent: (between, team.entry(parent, owner, between, [f"t:{team.owners[owner]}:gone"]))})
    via = {parent: {"tokens": [f"i:{memory_id}"], "at": 1, "ends": float("inf")}}
    receivers = [agent(number) for number in range(4, 4 + PASSED_ON)]
    entries = {new_id(): to for to in receivers}
    await team.grants({one: (to, team.entry(one, between, to, [], via=via)) for one, to in entries.items()})
    return await update(team, memory_id, owner, owner, [], tag="another")


async def update(
    team: BusyNamespace, memory_id: str, owner: str, by: str, grants: Sequence[str], tag: str | None = None
) -> Call:
    """A call of rm1_update with a whole new content, or with another tag."""
    keys, record = team.keys, team.record(owner, memory_id, long=True)
    fields = team.fields(record, long=True)
    if tag:
        fields = ["tags", tag, "scope", SEPARATOR.join([*sorted(record.scope), f"t:{record.owner}:{digest(tag)}"])]
    new_hash = digest(f"{memory_id} again")
    named = [
        keys.memory(memory_id), keys.job_streams, keys.audit, keys.counters, keys.use(memory_id),
        keys.same(record.owner, record.content_hash), keys.same(record.owner, new_hash), keys.chores,
        keys.seq(record.owner), keys.events, keys.granted(by), keys.agent(by), keys.data_key(record.owner),
    ]  # fmt: skip
    request = {
        "id": memory_id, "owners": [team.owners[by]], "grants": list(grants), "growth": 100, "most_growth": 10_000,
        "rev": 1, "fields": fields, "remove": ["nothing"], "relive": True, "ttl": 86_400, "grace": GRACE,
        "content_changed": not tag, "context": digest("other"), "pieces": len(team.long_chunks),
        "vector": None if tag else team.given_vector(), "job": {"body": team.long_chunks[0], "trace": ""}, "key": None,
        "seal": team.seal(memory_id, 2), "was": team.seal(memory_id, 1),
        "audit": team.audit(by, "update_memory", [memory_id]),
    }  # fmt: skip
    return Call(named, request, {"status": "updated"})


async def _copies(team: BusyNamespace, number: int) -> list[str]:
    """Store copies of a long memory, each with its own vector."""
    (first,) = await team.stored(1, _OWNER)
    ids, pipe = [new_id() for _ in range(number)], team.client.pipeline(transaction=False)
    for memory_id in ids:
        pipe.copy(team.keys.memory(first), team.keys.memory(memory_id))
        pipe.hset(team.keys.use(memory_id), "count", 1)
        pipe.hset(team.keys.memory(memory_id), team.model.field, team.vector())
    await pipe.execute()
    return ids


def _delete(team: BusyNamespace, ids: Sequence[str]) -> Call:
    keys, owner = team.keys, team.owners[_OWNER]
    named = [keys.audit, keys.counters, keys.chores, keys.events]
    for memory_id in ids:
        named += [keys.memory(memory_id), keys.use(memory_id)]
    request = {
        "ids": list(ids), "agent": _OWNER, "owners": [owner], "writer": None, "since": 0,
        "audit": team.audit(_OWNER, "clear_memory", ids),
    }  # fmt: skip
    return Call(named, request, {"deleted": list(ids)})


@worst("rm1_delete", f"{DELETED} memories of 1 MiB", "memories/clear.py, a slice")
async def _delete_long(team: BusyNamespace) -> Call:
    return _delete(team, await _copies(team, DELETED))


@worst("rm1_touch", f"{TOUCHED} memories", "service.py, a slice")
async def _touch(team: BusyNamespace) -> Call:
    ids = team.memories[:TOUCHED]
    keys = [key for memory_id in ids for key in (team.keys.memory(memory_id), team.keys.use(memory_id))]
    return Call(keys, {"counts": [1] * len(ids), "at": to_redis(time.time())}, {"status": "ok"})


def _chunk_items(team: BusyNamespace, number: int, *, vector: bool) -> list[dict[str, Any]]:
    texts = [max(team.long_chunks, key=len)] * number
    return [
        {
            "piece": position + 1, "code": ["mac", "m" * 40, "mac_key", "k" * 16],
            "fields": ["content", text, "terms", text], "vector": team.given_vector() if vector else None,
            "job": {"body": text, "trace": ""},
        }
        for position, text in enumerate(texts)
    ]  # fmt: skip


@worst("rm1_pieces", f"{CHUNKS} new chunks of a memory of 1 MiB, with vectors", "memories/chunks.py, a slice")
async def _pieces(team: BusyNamespace) -> Call:
    (memory_id,) = await team.stored(1, _OWNER)
    record, keys = team.record(_OWNER, memory_id, long=True), team.keys
    names = ("type", "priority", "owner", "writer", "visibility", "tags", "context", "source", "occurred_at")
    values = await team.client.hmget(keys.memory(memory_id), [*names, "scope", "hash"])
    shared = dict(zip([*names, "scope"], values, strict=False))
    request = {
        "id": memory_id, "hash": record.content_hash, "rev": 1, "signed": True, "fields": flat(shared),
        "remove": [], "items": _chunk_items(team, CHUNKS, vector=True),
    }  # fmt: skip
    named = [keys.chunk(memory_id, number) for number in range(1, CHUNKS + 1)]
    return Call([keys.memory(memory_id), keys.job_streams, keys.events, *named], request, {"status": "settled"})


@worst("rm1_pieces", f"{CHUNKS} chunks of a memory of 1 MiB that lost its context", "memories/chunks.py, a slice")
async def _pieces_again(team: BusyNamespace) -> Call:
    call = await _pieces(team)
    await team.all("rm1_pieces", [call])
    return Call(call.keys, call.request | {"remove": ["context"]}, call.answer)


@worst("rm1_settled", f"{CHUNKS} left chunks with vectors", "memories/chunks.py, a slice")
async def _settled(team: BusyNamespace) -> Call:
    call = await _pieces(team)
    await team.all("rm1_pieces", [call])
    keys, memory_id = team.keys, call.request["id"]
    request = {"hash": call.request["hash"], "rev": 1, "chore": f"{memory_id}:{CHUNKS}", "done": True}
    return Call([keys.chores, keys.memory(memory_id), *call.keys[3:]], request, {"status": "settled"})


@worst("rm1_commit", f"{COMMITTED} vectors of memories of 1 MiB", "streams/jobs.py, COMMIT_AT_ONCE")
async def _commit(team: BusyNamespace) -> Call:
    return await commit(team)


async def commit(team: BusyNamespace) -> Call:
    """A call of rm1_commit."""
    ids = await team.stored(COMMITTED, _OWNER, vector=False)
    stream = team.keys.jobs(team.model.name)
    read = await team.client.xreadgroup(GROUP, "bench", {stream: ">"}, count=10_000)
    jobs = {fields[b"id"].decode(): entry for rows in read.values() for part in rows for entry, fields in part}
    items = [
        {
            "id": memory_id, "rev": 1, "hash": digest(memory_id), "piece": 0, "entry": jobs[memory_id],
            "bytes": team.vector(), "dimension": team.model.dimension,
        }
        for memory_id in ids
    ]  # fmt: skip
    named = [stream, team.keys.events, *map(team.keys.memory, ids)]
    request = {"model": team.model.name, "group": GROUP, "items": items}
    return Call(named, request, {"verdicts": ["ok"] * COMMITTED})


@worst("rm1_drop_jobs", f"{COMMITTED} jobs of memories that are gone", "streams/jobs.py, COMMIT_AT_ONCE")
async def _drop_jobs(team: BusyNamespace) -> Call:
    stream = team.keys.jobs(team.model.name)
    entries = [await team.client.xadd(stream, {"id": new_id(), "body": "b"}) for _ in range(COMMITTED)]
    items = [{"entry": entry, "rev": 1, "hash": "h"} for entry in entries]
    named = [stream, *(team.keys.memory(new_id()) for _ in items)]
    return Call(named, {"group": GROUP, "items": items}, {"dropped": COMMITTED})


@worst("rm1_cache_vectors", f"{CACHED} of {_MOST_CACHED} vectors, one agent too many", "vector_cache.py, _AT_ONCE")
async def _cache_vectors(team: BusyNamespace) -> Call:
    def new() -> dict[bytes, bytes]:
        return {bytes.fromhex(digest(new_id())): team.vector() for _ in range(_MOST_CACHED)}

    keys, (own, oldest) = team.keys, (team.keys.cached_vectors(team.model.field, agent(one)) for one in (2, 3))
    for key in (own, oldest):
        await team.client.hset(key, mapping=new())
    others = {keys.cached_vectors(team.model.field, agent(100 + number)): number for number in range(1, CACHES)}
    await team.client.zadd(keys.caches, {**others, oldest: 0})
    vectors = [part for pair in list(new().items())[:CACHED] for part in pair]
    return Call([own], {"seconds": 86_400, "most": _MOST_CACHED, "vectors": vectors}, {"status": "ok"})


@worst("rm1_bury", "one job", "one job")
async def _bury(team: BusyNamespace) -> Call:
    stream = team.keys.jobs(team.model.name)
    entry = await team.client.xadd(stream, {"id": new_id(), "body": "b"})
    request = {"group": GROUP, "entry": entry, "id": new_id(), "rev": 1, "error": "e" * 1000}
    return Call([stream, team.keys.dead_jobs], request, {"status": "ok"})


@worst("rm1_requeue", f"{REQUEUED} long chunks, {LOST} lost jobs", "operations/embed_jobs.py, MOST_JOBS")
async def _requeue(team: BusyNamespace) -> Call:
    ids = await team.stored(REQUEUED, _OWNER, long=False, vector=False)
    text = max(team.long_chunks, key=len)
    items = [{"id": one, "piece": 0, "rev": 1, "hash": digest(one), "job": {"body": text}} for one in ids]
    stream, pipe = team.keys.jobs(team.model.name), team.client.pipeline(transaction=False)
    for _ in range(LOST):
        pipe.xadd(stream, {"id": new_id(), "body": text})
    lost = [entry.decode() for entry in await pipe.execute()]
    await team.client.xreadgroup(GROUP, "bench", {stream: ">"}, count=10_000)
    request = {"group": GROUP, "model": team.model.name, "items": items, "lost": lost}
    return Call([team.keys.job_streams, *map(team.keys.memory, ids)], request, {"queued": REQUEUED})


@worst("rm1_add_reader", "a memory of 1 MiB with a vector", LIMIT)
async def _add_reader(team: BusyNamespace) -> Call:
    (memory_id,) = await team.stored(1, _OWNER)
    request = {
        "id": memory_id, "rev": 1, "reader": f"r:{new_id()}", "by": _OWNER, "seal": team.seal(memory_id),
        "was": team.seal(memory_id),
    }  # fmt: skip
    return Call([team.keys.memory(memory_id), team.keys.chores, team.keys.events], request, {"status": "added"})


@worst("rm1_adopt", f"{ADOPTED} memories of 1 MiB with vectors", "operations/verify_integrity.py, a slice")
async def _adopt(team: BusyNamespace) -> Call:
    ids = await team.stored(ADOPTED, _OWNER)
    for memory_id in ids:
        await team.client.hdel(team.keys.memory(memory_id), "mac", "mac_key")
    request = {
        "items": [{"id": one, "rev": 1, "seal": team.seal(one), "was": None} for one in ids],
        "audit": team.audit("console", "adopt"),
    }  # fmt: skip
    named = [team.keys.audit, team.keys.counters, team.keys.chores, *map(team.keys.memory, ids)]
    return Call(named, request, {"adopted": ids})


async def _data_key(team: BusyNamespace) -> tuple[str, str]:
    owner = team.owners[_OWNER]
    await team.client.hset(team.keys.data_key(owner), mapping={"v1": "w" * 100, "current": "v1"})
    return owner, team.keys.data_key(owner)


@worst("rm1_key_issue", "one key", "one key")
async def _key_issue(team: BusyNamespace) -> Call:
    owner, key = await _data_key(team)
    await team.client.delete(key)
    keys = team.keys
    request = {"owner": owner, "version": "v1", "wrapped": "w" * 100, "audit": team.audit("server", "issue", [owner])}
    named = [key, keys.owner(owner), keys.tombstones, keys.keyed, keys.audit, keys.counters]
    return Call(named, request, {"status": "issued"})


@worst("rm1_key_turn", "one key", "one key")
async def _key_turn(team: BusyNamespace) -> Call:
    owner, key = await _data_key(team)
    request = {"before": "v1", "version": "v2", "wrapped": "w" * 100, "audit": team.audit("server", "turn", [owner])}
    return Call([key, team.keys.audit, team.keys.counters], request, {"status": "turned"})


@worst("rm1_key_drop", "one key", "one key")
async def _key_drop(team: BusyNamespace) -> Call:
    owner, key = await _data_key(team)
    await team.client.hset(key, "v0", "w")
    request = {"version": "v0", "audit": team.audit("server", "drop", [owner])}
    return Call([key, team.keys.audit, team.keys.counters], request, {"status": "dropped"})


@worst("rm1_key_rewrap", "one key", "one key")
async def _key_rewrap(team: BusyNamespace) -> Call:
    _, key = await _data_key(team)
    request = {"version": "v1", "before": "w" * 100, "wrapped": "x" * 100, "audit": team.audit("server", "rewrap")}
    return Call([key, team.keys.audit, team.keys.counters], request, {"status": "rewrapped"})


@worst("rm1_reseal", "one memory of 1 MiB", LIMIT)
async def _reseal(team: BusyNamespace) -> Call:
    owner, key = await _data_key(team)
    (memory_id,) = await team.stored(1, _OWNER)
    before = b"s" * 10_000
    await team.client.hset(team.keys.memory(memory_id), mapping={"sealed": before, "sealed_body": b"b" * CONTENT_BYTES})
    fields = {"codec": SEALED_CODEC, "hash": "h" * 32, "sealed": b"t" * 30_000, "sealed_body": b"c" * CONTENT_BYTES}
    keys = team.keys
    named = [
        keys.memory(memory_id), key, keys.job_streams, keys.chores, keys.same(owner, digest(memory_id)),
        keys.same(owner, "h" * 32), keys.audit, keys.counters,
    ]  # fmt: skip
    request = {
        "id": memory_id, "rev": 1, "before": before, "key": "v1", "fields": flat(fields),
        "vector": team.given_vector() | {"sealed": True}, "job": {"body": team.long_chunks[0], "trace": ""},
        "pieces": len(team.long_chunks), "seal": team.seal(memory_id), "was": None,
        "audit": team.audit("server", "reseal", [memory_id]),
    }  # fmt: skip
    return Call(named, request, {"status": "resealed"})


@worst("rm1_change_model", "a switch between two indexes", "one namespace")
async def _change_model(team: BusyNamespace) -> Call:
    request = {
        "step": "begin", "model": team.model.name, "field": team.model.field, "dimension": 384, "grace": 0,
        "audit": team.audit("console", "reindex"), "alias": team.keys.index_alias,
        "index": f"{team.keys.index_alias}:v",
    }  # fmt: skip
    named = [team.keys.meta, team.keys.audit, team.keys.counters]
    changed = {"other_model": team.model.name, "other_field": team.model.field, "other_dimension": 384}
    await team.client.hset(team.keys.meta, mapping=changed | {"other_version": 1, "phase": "building"})
    return Call(named, request | {"step": "switch"}, {"status": "switched"})


@worst("rm1_mark_vectors", f"{MARKED} memories of 1 MiB with vectors, one to remove", "operations/reindex.py, a slice")
async def _mark_vectors(team: BusyNamespace) -> Call:
    ids = await team.stored(MARKED, _OWNER)
    for memory_id in ids:
        await team.client.hset(team.keys.memory(memory_id), "vec_old", team.vector())
    return Call([team.keys.memory(one) for one in ids], {"remove": "vec_old"}, {"status": "ok"})


@worst("rm1_task_vectors", f"{TEXTS} tasks", "operations/reembed.py, a slice")
async def _task_vectors(team: BusyNamespace) -> Call:
    ids = await team.submitted(TEXTS, agent(1))
    request = {"field": team.model.field, "vectors": [team.vector() for _ in ids]}
    return Call([team.keys.task_vector(one) for one in ids], request, {"status": "ok"})


@worst("rm1_agent_vector", "one agent", "one agent")
async def _agent_vector(team: BusyNamespace) -> Call:
    name = agent(4)
    known = await team.client.hmget(team.keys.agent(name), ["description", "capabilities"])
    request = {"description": known[0], "capabilities": known[1], "profile": team.vector()}
    return Call([team.keys.agent(name)], request, {"status": "ok"})
