"""Worst cases of the check for damage."""

from __future__ import annotations

from benchmarks.worst_cases.busy_namespace import AGENTS, BusyNamespace, Call, limit_of, worst
from memory_core.records.ids import new_id
from memory_core.records.keys import bell

DISCARDED = limit_of("engine.damage", "_AT_ONCE")
_READ_AT_ONCE = 32
"""Agents that one check looks at: SAMPLE of 65_tidy.lua."""
GHOSTS = AGENTS // _READ_AT_ONCE
MEMBERS = 10_000
_PIPELINE = 10_000


@worst("rm1_discard", f"{DISCARDED} members of a sorted set", "engine/damage.py, _AT_ONCE")
async def _discard(team: BusyNamespace) -> Call:
    entries = [new_id() for _ in range(DISCARDED)]
    await team.client.zadd(team.keys.chores, dict.fromkeys(entries, 1))
    return Call([team.keys.chores], {"entries": entries, "why": "w" * 100}, {"status": "ok"})


@worst("rm1_discard", f"{DISCARDED} of 200 entries of a history", "engine/damage.py, _AT_ONCE")
async def _discard_history(team: BusyNamespace) -> Call:
    key, entries = team.keys.history(new_id()), [new_id() for _ in range(200)]
    await team.client.rpush(key, *entries)
    return Call([key], {"entries": entries[:DISCARDED], "why": "w" * 100}, {"status": "ok"})


@worst("rm1_tidy_key", f"a set of {MEMBERS} where a stream belongs", "one key, freed in the background")
async def _tidy_key(team: BusyNamespace) -> Call:
    key = bell(0)
    await team.client.delete(key)
    await team.client.sadd(key, *range(MEMBERS))
    return Call([key], {"command": "XLEN"}, {"status": "ok"})


@worst("rm1_tidy", f"{AGENTS} ghosts in an inbox, in the hand and among the grants", "MOST of 65_tidy.lua")
async def _tidy(team: BusyNamespace) -> Call:
    keys, pipe = team.keys, team.client.pipeline(transaction=False)
    for name in [raw.decode() for raw in await team.client.zrange(keys.agents, 0, -1)]:
        ghosts = [new_id() for _ in range(GHOSTS)]
        pipe.sadd(keys.held(name), *ghosts)
        for ghost in ghosts:
            pipe.xadd(keys.inbox(name), {"task": ghost, "score": 1})
            pipe.hset(keys.granted(name), ghost, b"g")
        if len(pipe) > _PIPELINE:
            await pipe.execute()
    await pipe.execute()
    return Call([keys.leases], {}, {"status": "ok"})
