"""Worst cases of events, the audit, tokens, quarantine and imports of memories."""

from __future__ import annotations

import time

from benchmarks.worst_cases.busy_namespace import (
    AGENTS,
    CONTENT_BYTES,
    GRACE,
    METADATA_BYTES,
    BusyNamespace,
    Call,
    agent,
    limit_of,
    worst,
)
from memory_core.records.ids import new_id
from memory_core.records.keys import digest, token_key
from memory_core.records.times import to_redis
from memory_server.security.audit.recorder import BATCH as ENTRIES
from memory_server.security.audit.retention import SLICE as TRIMMED
from memory_server.transfer.writer import MAX_CHARACTERS, MAX_MEMORIES, MAX_VECTORS

DROPPED = limit_of("events.retention", "_PAGE")
QUARANTINED = limit_of("operations.quarantine", "_MOST")
_TOKENS = 10_000


@worst("rm1_drop_events", f"{DROPPED} events, {AGENTS} agents that may miss some", "events/retention.py, a page")
async def _drop(team: BusyNamespace) -> Call:
    pipe = team.client.pipeline(transaction=False)
    for _ in range(DROPPED):
        pipe.xadd(team.keys.events, {"kind": "memory", "op": "stored", "id": new_id(), "scope": "s" * 300})
    ids = await pipe.execute()
    lost = [{"id": ids[0], "scope": "", "to": agent(number)} for number in range(AGENTS)]
    return Call([team.keys.events], {"drop": ids, "lost": lost}, {"dropped": DROPPED})


@worst("rm1_audit", f"{ENTRIES} entries", "security/audit/recorder.py, BATCH")
async def _audit(team: BusyNamespace) -> Call:
    entries = [team.audit(agent(1), "semantic_search", [new_id() for _ in range(100)]) for _ in range(ENTRIES)]
    named = [team.keys.audit, team.keys.counters, team.keys.audit_batch(new_id())]
    return Call(named, {"entries": entries}, {"status": "noted"})


@worst("rm1_seal", "one seal", "one seal")
async def _seal(team: BusyNamespace) -> Call:
    last = await team.client.xrevrange(team.keys.seals, count=1)
    previous = last[0][0].decode() if last else ""
    newest = await team.client.xadd(team.keys.audit, {"n": 1})
    request = {"id": newest, "previous": previous, "last": 1, "fields": ["mac", "m" * 60, "root", "r" * 60]}
    return Call([team.keys.seals, team.keys.counters], request, {"status": "sealed"})


@worst("rm1_audit_trim", f"{TRIMMED} entries of 100 ids", "security/audit/retention.py, SLICE")
async def _trim(team: BusyNamespace) -> Call:
    keys, ids = team.keys, " ".join(new_id() for _ in range(100))
    await team.client.delete(keys.audit)
    for _ in range(0, TRIMMED, 500):
        pipe = team.client.pipeline(transaction=False)
        for number in range(500):
            pipe.xadd(keys.audit, {"n": number, "at": "1", "who": agent(1), "op": "x", "ids": ids, "mac": "m" * 64})
        await pipe.execute()
    await team.client.delete(keys.seals)
    base = await team.client.xadd(keys.seals, {"mac": "m"})
    following = await team.client.xadd(keys.audit, {"n": 1, "mac": "m" * 64})
    request = {"base": base, "keep_from": following, "audit": team.audit("server", "trim")}
    return Call([keys.audit, keys.counters, keys.seals], request, {"status": "trimmed"})


@worst("rm1_token_issue", "one token", "one token")
async def _token_issue(team: BusyNamespace) -> Call:
    fields = ["namespace", team.keys.namespace, "agent", agent(1), "hash", "h" * 64, "mac", "m" * 60]
    return Call([token_key(new_id())], {"fields": fields, "expires_at": time.time() + GRACE}, {"issued": True})


@worst("rm1_token_revoke", "one token", "one token")
async def _token_revoke(team: BusyNamespace) -> Call:
    key = token_key(new_id())
    await team.client.hset(key, mapping={"namespace": team.keys.namespace, "hash": "h" * 64})
    return Call([key], {"namespace": team.keys.namespace}, {"revoked": True})


@worst("rm1_token_note", f"{_TOKENS} tokens that expired since the last", "none: any number of tokens")
async def _token_note(team: BusyNamespace) -> Call:
    keys = team.keys
    await team.client.zadd(keys.tokens, {new_id(): number for number in range(_TOKENS)})
    request = {"id": new_id(), "expires_at": time.time() + GRACE, "audit": team.audit("console", "token")}
    return Call([keys.audit, keys.counters, keys.tokens], request, {})


@worst("rm1_quarantine", f"the last of {QUARANTINED} marks", "operations/quarantine.py, _MOST")
async def _quarantine(team: BusyNamespace) -> Call:
    keys = team.keys
    await team.client.delete(keys.quarantined)
    await team.client.hset(keys.quarantined, mapping={agent(number): "m" * 90 for number in range(QUARANTINED - 1)})
    request = {
        "agent": agent(AGENTS - 1), "mark": "m" * 90, "most": QUARANTINED, "audit": team.audit("console", "quarantine"),
    }  # fmt: skip
    return Call([keys.audit, keys.counters, keys.quarantined], request, {"status": "quarantined"})


@worst("rm1_import", f"{MAX_MEMORIES} memories with 16 KiB metadata, no vectors", "transfer/writer.py, MAX_MEMORIES")
async def _import(team: BusyNamespace) -> Call:
    return _imported(team, MAX_MEMORIES, vector=False, long=False)


@worst("rm1_import", "2 memories of 1 MiB with vectors", "transfer/writer.py, MAX_CHARACTERS")
async def _import_vectors(team: BusyNamespace) -> Call:
    return _imported(team, MAX_CHARACTERS // CONTENT_BYTES, vector=True)


@worst("rm1_import", f"{MAX_VECTORS} memories with 16 KiB metadata and vectors", "transfer/writer.py, MAX_VECTORS")
async def _import_short_vectors(team: BusyNamespace) -> Call:
    return _imported(team, MAX_VECTORS, vector=True, long=False)


def _imported(team: BusyNamespace, number: int, *, vector: bool, long: bool = True) -> Call:
    keys, name = team.keys, agent(2)
    owner, items = team.owners[name], []
    named = [keys.audit, keys.counters, keys.job_streams, keys.chores, keys.events, keys.tombstones]
    for _ in range(number):
        memory_id = new_id()
        record, extra = team.record(name, memory_id, long=long), [] if long else ["metadata", "m" * METADATA_BYTES]
        named += [
            keys.memory(memory_id), keys.owner(owner), keys.seq(owner), keys.same(owner, record.content_hash),
            keys.data_key(owner),
        ]  # fmt: skip
        items.append({
            "id": memory_id, "owner": owner, "owners": [owner], "mark": None, "agent": name, "writer": name, "rev": 1,
            "hash": record.content_hash, "context": digest("context"), "expires_at": "inf", "ttl": None,
            "fields": [*team.fields(record, long=long), *extra], "pieces": len(team.long_chunks) if long else 1,
            "vector": team.given_vector() if vector else None, "job": {"body": team.long_chunks[0], "trace": ""},
            "key": None, "seal": team.seal(memory_id), "seq": 1, "created_at": to_redis(time.time()),
            "updated_at": to_redis(time.time()),
        })  # fmt: skip
    ids = [one["id"] for one in items]
    request = {"items": items, "grace": GRACE, "audit": team.audit("console", "import", ids)}
    return Call(named, request, {"status": "imported", "fates": ["new"] * number})


@worst("rm1_hold_lease", "a renewal", "one lease")
async def _hold_lease(team: BusyNamespace) -> Call:
    request = {"holder": "server", "milliseconds": 10_000}
    return Call([f"{team.keys.prefix}sweeper"], request, {"held": True})


@worst("rm1_release", "the release of the library", "one text")
async def _release(_: BusyNamespace) -> Call:
    return Call([], {})
