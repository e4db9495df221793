"""Worst cases of tasks and agents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.worst_cases.busy_namespace import (
    AGENTS,
    ATTEMPTS,
    GRANTS,
    HOUR,
    KEEP,
    KINDS,
    PAYLOAD_BYTES,
    TEXT_BYTES,
    BusyNamespace,
    Call,
    Request,
    agent,
    limit_of,
    worst,
)
from memory_core.records.ids import new_id
from memory_core.records.keys import digest
from memory_core.records.names import SEPARATOR
from memory_core.records.task_kind import TaskKind
from memory_core.records.times import to_redis
from memory_server.agents.registry import RENEWED_AT_ONCE as TOKENS

ASSIGNED = limit_of("tasks.routing", "_ASSIGNED_AT_ONCE")
RANKED = limit_of("tasks.routing", "_MAX_CANDIDATES")
CANDIDATES = limit_of("tasks.submit", "_MAX_CANDIDATES")
DEPENDENCIES = limit_of("tasks.submit", "_MAX_DEPENDENCIES")
DEPENDENTS, SLICE, INBOX, CONTEXTS = 200, 32, 1000, 1000
AVOIDED = 1000
PAUSE_SECONDS = 60
CLAIMED = limit_of("tasks.leases", "_LEASED_AT_ONCE")
RESUMED = limit_of("tasks.leases", "_RESUMED_AT_ONCE")
SESSIONS = limit_of("engine.presence", "_AT_ONCE")
SHOWN = 64
_SESSION = "s" * 32
_SUBMITTER = agent(1)


def _call(team: BusyNamespace, name: str, answer: Request, **request: Any) -> Call:
    common = {"agent": name, "keep": KEEP, "call": new_id(), "admin": False, "audit": team.audit(name, "task")}
    return Call([team.keys.leases], common | request, answer)


async def _full_inbox(team: BusyNamespace, name: str, number: int) -> list[str]:
    """Assign tasks to an agent until its inbox has so many."""
    has = await team.client.xlen(team.keys.inbox(name))
    return await team.submitted(max(number - has, 0), _SUBMITTER, to=[name])


@worst("rm1_task_submit", f"{DEPENDENCIES} dependencies, 64 KiB payload", "tasks/submit.py, _MAX_DEPENDENCIES")
async def _submit(team: BusyNamespace) -> Call:
    if await team.client.zcard(team.keys.submitted(_SUBMITTER)) < 10_000:
        await team.client.zadd(team.keys.submitted(_SUBMITTER), {new_id(): number for number in range(10_100)})
    after = await team.submitted(DEPENDENCIES, _SUBMITTER)
    kind = TaskKind(tuple(f"skill-{number}" for number in range(64)), 1)
    return team.submission(_SUBMITTER, kind, after=after, payload=PAYLOAD_BYTES, text=TEXT_BYTES)


@worst("rm1_task_submit", f"{CANDIDATES} candidates, all without room", "tasks/submit.py, _MAX_CANDIDATES")
async def _submit_routed(team: BusyNamespace) -> Call:
    names = [agent(number) for number in range(60, 60 + CANDIDATES)]
    for name in names:
        await team.client.hset(team.keys.agent(name), "max_tasks", 0)
    return team.submission(_SUBMITTER, payload=PAYLOAD_BYTES, text=TEXT_BYTES, to=names)


@worst("rm1_task_assign", f"{ASSIGNED} tasks, each with {RANKED} other candidates without room", "tasks/routing.py")
async def _assign(team: BusyNamespace) -> Call:
    ids = await team.submitted(ASSIGNED, _SUBMITTER)
    names = [agent(number) for number in range(100, 100 + ASSIGNED * RANKED)]
    pipe = team.client.pipeline(transaction=False)
    for name in names:
        pipe.xadd(team.keys.inbox(name), {"task": new_id(), "score": 1})
        pipe.hset(team.keys.agent(name), "max_tasks", 1)
    await pipe.execute()
    items = [{"id": one, "candidates": names[number::ASSIGNED]} for number, one in enumerate(ids)]
    return _call(team, "", {"assigned": []}, items=items)


@worst("rm1_task_assign", f"{ASSIGNED} tasks that {RANKED - 1} of their candidates failed at", "tasks/routing.py")
async def _assign_avoided(team: BusyNamespace) -> Call:
    ids = await team.submitted(ASSIGNED, _SUBMITTER)
    names = [agent(number) for number in range(700, 700 + RANKED)]
    pipe = team.client.pipeline(transaction=False)
    for name in names[:-1]:
        pipe.zadd(team.keys.avoided(name), dict.fromkeys(ids, time.time() + HOUR))
    await pipe.execute()
    answer = {"assigned": dict.fromkeys(ids, names[-1])}
    return _call(team, "", answer, items=[{"id": one, "candidates": names} for one in ids])


@worst("rm1_task_claim", f"{CLAIMED} tasks of {KINDS} kinds that the agent can do", "tasks/leases.py, _LEASED_AT_ONCE")
async def _claim(team: BusyNamespace) -> Call:
    name = agent(5)
    await _queue_all_kinds(team, name)
    return await _claiming(team, name)


async def _queue_all_kinds(team: BusyNamespace, name: str) -> None:
    """Submit a task of each kind, and let the agent be able to do all."""
    able = SEPARATOR.join(skill for kind in team.kinds for skill in kind.capabilities)
    await team.client.hset(team.keys.agent(name), "capabilities", able)
    calls = [team.submission(agent(30 + number // 30), kind) for number, kind in enumerate(team.kinds)]
    await team.all("rm1_task_submit", calls)


async def _claiming(team: BusyNamespace, name: str, number: int = CLAIMED) -> Call:
    held = await team.client.scard(team.keys.held(name))
    secrets = ["s" * 16] * CLAIMED
    return _call(team, name, {"status": "claimed", "held": held + number}, secrets=secrets, session=_SESSION)


@worst(
    "rm1_task_claim",
    f"{CLAIMED} of {INBOX} in the agent's inbox, {SHOWN} leases to show, and {KINDS} kinds",
    "max_tasks, at most 1000",
)
async def _claim_inbox(team: BusyNamespace) -> Call:
    name = agent(6)
    await team.register(name)
    await _free_hands(team, name)
    await _leased_by_session(team, name, SHOWN)
    await _full_inbox(team, name, INBOX)
    await _queue_all_kinds(team, name)
    return await _claiming(team, name)


@worst("rm1_task_claim", f"{RESUMED} leases of an ended session", "tasks/leases.py, _RESUMED_AT_ONCE")
async def _claim_resumed(team: BusyNamespace) -> Call:
    name = agent(27)
    await team.register(name)
    await _free_hands(team, name)
    await _leased_by_session(team, name, SHOWN)
    answer = {"status": "claimed", "held": SHOWN}
    request = {"secrets": list[str](), "resumes": ["s" * 16] * RESUMED, "session": "another"}
    return _call(team, name, answer, **request)


async def _leased_by_session(team: BusyNamespace, name: str, number: int) -> None:
    """Lease tasks to a session of an agent, halfway to the end of the leases, until it holds so many."""
    held = await team.client.scard(team.keys.held(name))
    if held < number:
        await team.leased(number - held, name)
    pipe, ends = team.client.pipeline(transaction=False), to_redis(time.time() + HOUR / 2)
    for raw in await team.client.smembers(team.keys.held(name)):
        task_id = raw.decode()
        pipe.hset(team.keys.task(task_id), mapping={"session": _SESSION, "lease_until": ends})
        pipe.zadd(team.keys.leases, {task_id: ends})
    await pipe.execute()


async def _free_hands(team: BusyNamespace, name: str) -> None:
    """End the leases of an agent without a trace, so that it has the capacity for as many as before."""
    pipe = team.client.pipeline(transaction=False)
    for raw in await team.client.smembers(team.keys.held(name)):
        task_id = raw.decode()
        entry = await team.client.hget(team.keys.task(task_id), "entry")
        pipe.xdel(team.keys.inbox(name), entry)
        pipe.zrem(team.keys.leases, task_id)
        pipe.delete(team.keys.task(task_id), team.keys.history(task_id))
    pipe.delete(team.keys.held(name))
    await pipe.execute()


async def _avoiding(team: BusyNamespace, name: str, kind: TaskKind) -> None:
    """Let an agent and another one be able to do a kind of task, whose first tasks the agent failed at."""
    for able in (name, agent(AGENTS - 1)):
        await team.client.hset(team.keys.agent(able), "capabilities", SEPARATOR.join(kind.capabilities))
    queued = await team.client.zrange(team.keys.backlog(kind.id), 0, AVOIDED - 1)
    ids = [raw.decode() for raw in queued] or await team.submitted(AVOIDED, agent(29), kind)
    await team.client.zadd(team.keys.avoided(name), dict.fromkeys(ids, time.time() + HOUR))


@worst("rm1_task_claim", f"none of {AVOIDED} queued tasks that the agent failed at", "AVOIDED_KEPT of 39_avoided.lua")
async def _claim_avoided(team: BusyNamespace) -> Call:
    name = agent(7)
    await _avoiding(team, name, TaskKind(("only-two",)))
    return await _claiming(team, name, 0)


@worst("rm1_task_claim", f"{CLAIMED} behind {AVOIDED} that the agent failed at", "AVOIDED_KEPT of 39_avoided.lua")
async def _claim_behind(team: BusyNamespace) -> Call:
    name, kind = agent(24), TaskKind(("two-more",))
    await _avoiding(team, name, kind)
    await team.submitted(CLAIMED, agent(29), kind)
    await _free_hands(team, name)
    return await _claiming(team, name)


async def _dependents(team: BusyNamespace, task_id: str, number: int = DEPENDENTS) -> None:
    await team.submitted(number, _SUBMITTER, after=[task_id])


@worst("rm1_task_complete", f"64 KiB result, {DEPENDENTS} dependents, full history", "BATCH of 40_queues.lua")
async def _complete(team: BusyNamespace) -> Call:
    name = agent(8)
    ((task_id, token),) = (await team.leased(1, name)).items()
    await _dependents(team, task_id)
    fields = ["last_call", "c", "result", "r" * PAYLOAD_BYTES, "metrics", "m" * PAYLOAD_BYTES]
    request = {"id": task_id, "token": token, "duration_ms": None, "fields": fields}
    return _call(team, name, {"status": "completed"}, **request)


@worst("rm1_task_stored", "one task", "one task")
async def _stored(team: BusyNamespace) -> Call:
    name = agent(8)
    ((task_id, _),) = (await team.leased(1, name)).items()
    await team.client.hset(team.keys.task(task_id), mapping={"state": "completed", "holders": name})
    return _call(team, name, {"status": "noted"}, id=task_id, memory=new_id())


@worst("rm1_task_fail", f"the last attempt, {DEPENDENTS} dependents, full history", "BATCH of 40_queues.lua")
async def _fail_dead(team: BusyNamespace) -> Call:
    name = agent(8)
    ((task_id, token),) = (await team.leased(1, name)).items()
    await _dependents(team, task_id)
    return _failing(team, name, task_id, token, {"status": "dead"}, retry=False)


@worst("rm1_task_fail", f"a retry of a task that none of {AGENTS} other agents can do", "COMPARED of 39_avoided.lua")
async def _fail_retry(team: BusyNamespace) -> Call:
    name = agent(8)
    ((task_id, token),) = (await team.leased(1, name)).items()
    spec = TaskKind((f"only-{new_id()}",)).spec
    await team.client.hset(team.keys.task(task_id), "kind_spec", spec)
    return _failing(team, name, task_id, token, {"status": "retrying"}, retry=True)


def _failing(team: BusyNamespace, name: str, task_id: str, token: str, answer: Request, *, retry: bool) -> Call:
    text = "e" * TEXT_BYTES
    request = {"id": task_id, "token": token, "error": text, "handoff": text, "retry": retry}
    return _call(team, name, answer, **request, backoff=1, backoff_most=HOUR, jitter=0.5)


@worst("rm1_task_cancel", f"a leased task, {DEPENDENTS} dependents, full history", "BATCH of 40_queues.lua")
async def _cancel(team: BusyNamespace) -> Call:
    ((task_id, _),) = (await team.leased(1, agent(8))).items()
    await _dependents(team, task_id)
    return _call(team, _SUBMITTER, {"status": "cancelled"}, id=task_id, reason="r" * TEXT_BYTES)


@worst("rm1_task_cancel", f"{SLICE} dependents with {DEPENDENCIES} dependencies each", "BATCH of 40_queues.lua")
async def _cancel_blockers(team: BusyNamespace) -> Call:
    task_id, *others = await team.submitted(DEPENDENCIES, _SUBMITTER)
    await team.submitted(SLICE, _SUBMITTER, after=[task_id, *others])
    return _call(team, _SUBMITTER, {"status": "cancelled"}, id=task_id, reason="r" * TEXT_BYTES)


@worst("rm1_task_requeue", f"a dead task with {DEPENDENCIES} dependencies", "tasks/submit.py, _MAX_DEPENDENCIES")
async def _requeue(team: BusyNamespace) -> Call:
    ((task_id, token),) = (await team.leased(1, agent(8))).items()
    await team.all("rm1_task_fail", [_failing(team, agent(8), task_id, token, {"status": "dead"}, retry=False)])
    after = await team.submitted(DEPENDENCIES, _SUBMITTER)
    await team.client.hset(team.keys.task(task_id), "depends_on", SEPARATOR.join(after))
    return _call(team, _SUBMITTER, {"status": "waiting"}, id=task_id)


@worst("rm1_task_sweep", f"{SLICE} due of each of four kinds, {DEPENDENTS} dependents", "SWEPT of 50_tasks.lua")
async def _sweep(team: BusyNamespace) -> Call:
    await _due(team)
    return _call(team, "", {})


async def _due(team: BusyNamespace) -> list[str]:
    """Let leases expire, and what else a sweep handles. Returns the leased tasks."""
    keys, client, over = team.keys, team.client, to_redis(time.time() - 1)
    await _reporting(team, agent(8))
    leased = list(await team.leased(SLICE, agent(8), until=time.time() - 1))
    for task_id in leased:
        avoid = SEPARATOR.join(agent(number) for number in range(ATTEMPTS - 1))
        await client.hset(keys.task(task_id), "avoid", avoid)
    for task_id in await team.submitted(SLICE, _SUBMITTER, to=[agent(9)]):
        await client.zadd(keys.unclaimed, {task_id: over})
    for task_id in await team.submitted(SLICE, _SUBMITTER):
        await client.zrem(keys.backlog(team.kinds[0].id), task_id)
        await client.hset(keys.task(task_id), "state", "retrying")
        await client.zadd(keys.delayed, {task_id: over})
    for task_id in await team.submitted(SLICE, _SUBMITTER):
        await client.zadd(keys.deadlines, {task_id: over})
        await _dependents(team, task_id, 2)
    return leased


async def _reporting(team: BusyNamespace, name: str) -> None:
    """Let an agent have reported the longest metrics since it was given its leases: each task keeps them."""
    mapping = {"metrics": "m" * TEXT_BYTES, "metrics_at": to_redis(time.time() + HOUR)}
    await team.client.hset(team.keys.agent(name), mapping=mapping)


async def _unable(team: BusyNamespace, ids: Sequence[str]) -> None:
    """Let no agent be able to do some tasks, each of its own kind."""
    pipe = team.client.pipeline(transaction=False)
    for task_id in ids:
        pipe.hset(team.keys.task(task_id), "kind_spec", TaskKind((f"only-{task_id}",)).spec)
    await pipe.execute()


@worst("rm1_task_sweep", f"the same, and none of {AGENTS} agents can do the leased tasks", "COMPARED of 39_avoided.lua")
async def _sweep_unable(team: BusyNamespace) -> Call:
    await _until_swept(team)
    await _unable(team, await _due(team))
    return _call(team, "", {"more": True})


async def _until_swept(team: BusyNamespace) -> None:
    """Sweep what earlier cases left due."""
    more = True
    while more:
        more = (await team.call("rm1_task_sweep", [team.keys.leases], {"keep": KEEP}))["more"]


@worst("rm1_task_sweep", f"after a pause: {AGENTS} agents, leases and assignments", "tasks.open_tasks, max_tasks")
async def _sweep_pause(team: BusyNamespace) -> Call:
    await _until_swept(team)
    keys, name, at = team.keys, agent(25), time.time()
    await team.leased(max(AGENTS - await team.client.zcard(keys.leases), 0), name)
    await team.submitted(max(AGENTS - await team.client.zcard(keys.unclaimed), 0), _SUBMITTER, to=[agent(9)])
    await team.client.hset(keys.counters, "team_at", to_redis(at - PAUSE_SECONDS))
    return _call(team, "", {"more": False})


@worst("rm1_agent_reserved", f"{SLICE} for an agent that left, {DEPENDENTS} dependents", "BATCH of 40_queues.lua")
async def _reserved(team: BusyNamespace) -> Call:
    name = f"left-{new_id().lower()}"
    await team.register(name)
    for task_id in await team.submitted(SLICE, _SUBMITTER, TaskKind(only=name)):
        await _dependents(team, task_id, DEPENDENTS // SLICE + 1)
    await team.client.delete(team.keys.agent(name))
    return _agent_call(team, name, {"ended": SLICE, "more": True})


@worst("rm1_agent_register", "a new name with 64 capabilities, 16 KiB description, a vector", "one agent")
async def _register(team: BusyNamespace) -> Call:
    able = [f"capability-{number}-{'c' * 200}" for number in range(64)]
    return team.registration(f"new-{new_id().lower()}", able, description="d" * TEXT_BYTES)


def _agent_call(team: BusyNamespace, name: str, answer: Request, **request: Any) -> Call:
    common = {"agent": name, "keep": KEEP, "reason": "r" * 100, "audit": team.audit(name, "agent")}
    return Call([team.keys.agent(name)], common | request, answer)


@worst("rm1_agent_heartbeat", f"{TOKENS} leases, with metrics", "agents/registry.py, RENEWED_AT_ONCE")
async def _heartbeat(team: BusyNamespace) -> Call:
    name = agent(11)
    await _leased_by_session(team, name, TOKENS)
    ids = [one.decode() for one in await team.client.smembers(team.keys.held(name))]
    request: Request = {
        "tokens": [f"{one}.1.{'s' * 16}" for one in ids],
        "fields": ["metrics", "m" * TEXT_BYTES, "load", 1],
        "reports": True,
        "session": _SESSION,
    }
    return _agent_call(team, name, {"lost": []}, **request)


@worst("rm1_agent_seen", f"{SESSIONS} agents that were dead, with {TOKENS} leases", "engine/presence.py, _AT_ONCE")
async def _seen(team: BusyNamespace) -> Call:
    names = [agent(number) for number in range(300, 300 + SESSIONS)]
    for position, name in enumerate(names):
        await _leased_by_session(team, name, TOKENS * (position + 1) // SESSIONS - TOKENS * position // SESSIONS)
        await team.client.hset(team.keys.agent(name), "status", "dead")
        await team.client.zadd(team.keys.agents, {name: -1})
    return _seeing(team, names)


def _seeing(team: BusyNamespace, names: Sequence[str]) -> Call:
    items = [{"agent": name, "session": _SESSION, "ago": 0.02} for name in names]
    return Call([team.keys.agents], {"items": items}, {"pauses": ["10"] * len(names)})


@worst("rm1_agent_seen", f"an agent with {INBOX} leases", "RENEWED_MOST of 60_agents.lua")
async def _seen_leases(team: BusyNamespace) -> Call:
    await _leased_by_session(team, agent(400), INBOX)
    return _seeing(team, [agent(400)])


@worst("rm1_agent_session_ended", "one session", "one session")
async def _session_ended(team: BusyNamespace) -> Call:
    await team.client.zadd(team.keys.sessions(agent(11)), {_SESSION: time.time() + HOUR})
    return _agent_call(team, agent(11), {"status": "ok"}, session=_SESSION)


@worst("rm1_agent_lost", f"{SLICE} tasks behind {INBOX - 2 * SLICE} leases", "BATCH of 40_queues.lua")
async def _lost(team: BusyNamespace) -> Call:
    name = agent(12)
    await team.register(name)
    await _leased_by_session(team, name, INBOX - 2 * SLICE)
    await _full_inbox(team, name, INBOX)
    await team.client.zadd(team.keys.agents, {name: 1})
    return _agent_call(team, name, {"status": "dead", "taken": SLICE, "more": True})


async def _losing(team: BusyNamespace, name: str) -> None:
    held = await team.client.scard(team.keys.held(name))
    await _reporting(team, name)
    for task_id in await team.leased(max(100 - held, 0), name):
        avoid = SEPARATOR.join(agent(number) for number in range(900, 900 + ATTEMPTS - 2))
        await team.client.hset(team.keys.task(task_id), "avoid", avoid)


@worst("rm1_agent_release", f"{SLICE} of 100 leased tasks", "BATCH of 40_queues.lua")
async def _release(team: BusyNamespace) -> Call:
    name = agent(13)
    await _losing(team, name)
    return _agent_call(team, name, {"taken": SLICE})


@worst("rm1_agent_release", "100 leased tasks of kinds that no agent can do", "COMPARED of 39_avoided.lua")
async def _release_unable(team: BusyNamespace) -> Call:
    name = agent(26)
    await _losing(team, name)
    await _unable(team, [one.decode() for one in await team.client.smembers(team.keys.held(name))])
    return _agent_call(team, name, {"more": True})


@worst(
    "rm1_agent_unregister",
    f"{GRANTS} grants and offers, 999 given, 10,000 submitted",
    "AT_ONCE of 30_grants.lua",
)
async def _unregister(team: BusyNamespace) -> Call:
    name, keys = agent(14), team.keys
    await team.register(name)
    held = {new_id(): 500 + number // 32 for number in range(GRANTS)}
    tokens = [f"i:{memory_id}" for memory_id in team.memories[:16]]
    await team.grants({one: (name, team.entry(one, agent(by), name, tokens)) for one, by in held.items()})
    offered = {new_id(): 500 + number // 32 for number in range(GRANTS)}
    entries = {one: (name, team.entry(one, agent(by), name, tokens)) for one, by in offered.items()}
    await team.grants(entries, state="offered")
    given = {new_id(): agent(number) for number in range(AGENTS) if number not in (0, 14)}
    await team.grants({one: (to, team.entry(one, name, to, tokens)) for one, to in given.items()})
    await team.client.zadd(keys.submitted(name), {new_id(): number for number in range(10_000)})
    await team.client.hset(keys.performance(name), mapping={f"done:{number}": 1 for number in range(400)})
    owner = team.owners[name]
    request = {"memories": "keep", "target": "", "known": [owner], "proofs": {owner: "c" * 80}}
    return _agent_call(team, name, {"status": "more"}, **request)


@worst("rm1_agent_unregister", f"no grants, {CONTEXTS} contexts", "CONTEXTS_READ of 60_agents.lua")
async def _unregister_contexts(team: BusyNamespace) -> Call:
    name = f"left-{new_id().lower()}"
    await team.register(name)
    owner = team.owners[name]
    seq, contexts = team.keys.seq(owner), [digest(new_id()) for _ in range(CONTEXTS)]
    await team.client.hset(seq, mapping=dict.fromkeys(contexts, 1))
    await team.client.hexpire(seq, HOUR, *contexts)
    request = {"memories": "keep", "target": "", "known": [owner], "proofs": {owner: "c" * 80}}
    return _agent_call(team, name, {"status": "unregistered"}, **request)


@worst("rm1_agent_purged", "one owner id", "one owner id")
async def _purged(team: BusyNamespace) -> Call:
    owner = new_id()
    await team.client.sadd(team.keys.tombstones, owner)
    await team.client.hset(team.keys.owner(owner), "agent", "gone")
    return Call([team.keys.tombstones, team.keys.owner(owner)], {"owner": owner}, {"status": "ok"})
