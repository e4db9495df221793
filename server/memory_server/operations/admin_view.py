"""Tasks and grants for the dashboard and the console. Agents see their own; admins see those of all agents.

The boards of the dashboard show the newest at a bounded cost. The lists of the console go through all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory_core.errors import Forbidden
from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.task import Task, TaskState, load_tasks
from memory_core.records.times import to_iso
from memory_core.redis_client import Client
from memory_server.contract.dashboard import BoardAnswer, GrantsAnswer
from memory_server.contract.sharing import GrantInfo, GrantListAnswer, GrantState, SharedContextArguments
from memory_server.contract.tasks import TaskListAnswer, TaskView
from memory_server.engine.backend import Backend
from memory_server.engine.request import Caller, RequestContext
from memory_server.search.services import SearchServices
from memory_server.sharing.shared_context import get_shared_context, grant_info

_MOST_TASKS = 500
_MOST_GRANTS = 1000
_OF_EACH = 200
_SLICE = 500
_IN_FORCE = ("active", "offered")
_HINT = "open the dashboard by the one-time URL that `redis-memory dashboard` prints, or use an admin's token"


def check_admin(caller: Caller) -> None:
    """Require a caller that may see all of a namespace.

    Raises:
        Forbidden: the caller acts for one agent only.
    """
    if not caller.admin:
        raise Forbidden("only an admin sees what all agents have", hint=_HINT)


async def task_board(backend: Backend, caller: Caller) -> BoardAnswer:
    """Show the newest tasks that the caller submitted, holds or was assigned; for an admin those of all agents."""
    keys = Keys(caller.namespace)

    async def fetch(client: Client) -> tuple[float, list[Task]]:
        names = await (_newest_tasks(client, keys) if caller.admin else _own_tasks(client, keys, caller.agent))
        newest = sorted(names, reverse=True)[:_MOST_TASKS]
        seconds, microseconds = await client.time()
        return seconds + microseconds / 1e6, await load_tasks(client, keys, newest)

    now, tasks = await backend.read(fetch)
    seen = [task for task in tasks if caller.admin or task.is_party(caller.agent)]
    return BoardAnswer(
        whole=caller.admin, now=to_iso(now) or "", tasks=[TaskView.of(task, whole=False) for task in seen]
    )


async def grant_board(service: SearchServices, request: RequestContext) -> GrantsAnswer:
    """Show the grants and offers that the caller gave or received; for an admin those of all registered agents."""
    if not request.caller.admin:
        shown = await get_shared_context(service, request, SharedContextArguments(max_tokens=1))
        given = [*shown.granted_by_me, *shown.granted_to_me]
        return GrantsAnswer(whole=False, grants=given, offers=shown.offers)
    keys = Keys(request.caller.namespace)
    rows = await service.backend.read(lambda client: _newest_grants(client, keys))
    now, listed = redis_time.now(), GrantsAnswer(whole=True, grants=[], offers=[])
    for grant_id, row in rows:
        if row and float(row["until"]) > now:
            lists: dict[bytes, list[GrantInfo]] = {b"active": listed.grants, b"offered": listed.offers}
            lists.get(row["state"], []).append(grant_info(grant_id, row))
    return listed


async def _own_tasks(client: Client, keys: Keys, agent: str) -> set[str]:
    pipe = client.pipeline(transaction=False)
    pipe.zrange(keys.submitted(agent), 0, _MOST_TASKS - 1, desc=True)
    pipe.smembers(keys.held(agent))
    pipe.xrevrange(keys.inbox(agent), count=_OF_EACH)
    submitted, held, assigned = await pipe.execute()
    return {name.decode() for name in (*submitted, *held, *(fields[b"task"] for _, fields in assigned))}


async def _newest_tasks(client: Client, keys: Keys) -> set[str]:
    """Give the ids of open and dead tasks, and of those that registered agents submitted last."""
    kinds, agents = await client.hkeys(keys.kinds), await client.zrange(keys.agents, 0, _OF_EACH - 1)
    pipe: Any = client.pipeline(transaction=False)
    pipe.xrevrange(keys.dead_tasks, count=_OF_EACH)
    for queue in (keys.leases, keys.unclaimed, keys.delayed, *(keys.backlog(kind.decode()) for kind in kinds)):
        pipe.zrange(queue, 0, _OF_EACH - 1)
    for name in agents:
        pipe.zrange(keys.submitted(name.decode()), 0, 49, desc=True)
    dead, *others = await pipe.execute()
    return {name.decode() for name in (*(fields[b"task"] for _, fields in dead), *(n for row in others for n in row))}


async def _newest_grants(client: Client, keys: Keys) -> list[tuple[str, dict[str, bytes]]]:
    pipe: Any = client.pipeline(transaction=False)
    for name in await client.zrange(keys.agents, 0, -1):
        pipe.hkeys(keys.granted(name.decode()))
        pipe.hkeys(keys.offers(name.decode()))
    named = {raw.decode() for row in await pipe.execute() for raw in row}
    newest = sorted(named, reverse=True)[:_MOST_GRANTS]
    for grant_id in newest:
        pipe.hgetall(keys.grant(grant_id))
    rows = [{name.decode(): value for name, value in row.items()} for row in await pipe.execute()]
    return list(zip(newest, rows, strict=True))


async def all_tasks(
    backend: Backend, caller: Caller, *, states: Sequence[TaskState], agent: str | None, limit: int
) -> TaskListAnswer:
    """List the newest tasks of the namespace, in some states or in any; of `agent`, those it submitted or has had.

    Raises:
        Forbidden: the caller is no admin.
    """
    check_admin(caller)
    keys = Keys(caller.namespace)
    found: list[Task] = []
    ids = sorted(await _ids(backend, keys.task("")), reverse=True)
    for start in range(0, len(ids), _SLICE):
        wanted = ids[start : start + _SLICE]
        tasks = await backend.read(lambda client, wanted=wanted: load_tasks(client, keys, wanted))
        found += [
            task for task in tasks if (not states or task.state in states) and (agent is None or task.is_party(agent))
        ]
        if len(found) >= limit:
            break
    return TaskListAnswer(tasks=[TaskView.of(task) for task in found[:limit]])


async def all_grants(
    backend: Backend, caller: Caller, *, agent: str | None, ended: bool, limit: int
) -> GrantListAnswer:
    """List the newest grants and offers of the namespace; of `agent`, those that it gave or was given.

    Without `ended` only what is in force or waits.

    Raises:
        Forbidden: the caller is no admin.
    """
    check_admin(caller)
    keys = Keys(caller.namespace)
    found: list[GrantState] = []
    ids = sorted(await _ids(backend, keys.grant("")), reverse=True)
    for start in range(0, len(ids), _SLICE):
        wanted = ids[start : start + _SLICE]
        now, rows = await backend.read(lambda client, wanted=wanted: _rows(client, keys, wanted))
        pairs = [(grant_id, row) for grant_id, row in zip(wanted, rows, strict=True) if row]
        told = [_state(grant_id, row, now) for grant_id, row in pairs]
        found += [
            grant
            for grant in told
            if (ended or grant.state in _IN_FORCE) and agent in (None, grant.from_agent, grant.to_agent)
        ]
        if len(found) >= limit:
            break
    return GrantListAnswer(grants=found[:limit])


async def _ids(backend: Backend, prefix: str) -> list[str]:
    """Give the ids of all keys with a prefix; those made meanwhile may be left out."""
    names: set[bytes] = set()
    cursor = 0
    while True:
        cursor, found = await backend.read(
            lambda client, cursor=cursor: client.scan(cursor, match=f"{prefix}*", count=1000)
        )
        names.update(found)
        if not cursor:
            return [name.decode()[len(prefix) :] for name in names]


async def _rows(client: Client, keys: Keys, ids: Sequence[str]) -> tuple[float, list[dict[bytes, bytes]]]:
    pipe = client.pipeline(transaction=False)
    pipe.time()
    for grant_id in ids:
        pipe.hgetall(keys.grant(grant_id))
    (seconds, _), *rows = await pipe.execute()
    return float(seconds), rows


def _state(grant_id: str, row: dict[bytes, bytes], now: float) -> GrantState:
    """Tell of a grant; one that ran out counts as expired before it is removed."""
    fields: dict[str, Any] = {name.decode(): value for name, value in row.items()}
    state = fields["state"].decode()
    if state in _IN_FORCE and float(fields["until"]) <= now:
        state = "expired"
    return GrantState.model_validate(grant_info(grant_id, fields).model_dump() | {"state": state})
