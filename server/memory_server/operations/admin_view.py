"""Tasks and grants for the dashboard and the console. Agents see their own; admins and operators see those of all.

The boards of the dashboard show the newest at a bounded cost. The lists of the console go through all.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from memory_core.errors import Forbidden
from memory_core.records import redis_time
from memory_core.records.agent import held_since
from memory_core.records.damage import execute, or_none
from memory_core.records.ids import is_id
from memory_core.records.keys import Keys
from memory_core.records.task import Task, TaskState, load_tasks
from memory_core.records.times import to_iso
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_server.contract.dashboard import BoardAnswer, GrantsAnswer
from memory_server.contract.sharing import GrantInfo, GrantListAnswer, GrantState
from memory_server.contract.tasks import TaskListAnswer, TaskView
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.search.services import SearchServices
from memory_server.sharing.shared_context import grant_info, list_grants

_MOST_TASKS = 500
_MOST_GRANTS = 1000
_OF_EACH = 200
_SLICE = 500
_IN_FORCE = ("active", "offered")
_HINT = "open the dashboard by the one-time URL that `redis-memory dashboard` prints, or use an admin's token"


def check_oversees(caller: Caller) -> None:
    """Raise Forbidden unless the caller may see what all agents have."""
    if not caller.oversees:
        raise Forbidden("only an admin sees what all agents have", hint=_HINT)


async def task_board(backend: Backend, caller: Caller) -> BoardAnswer:
    """Show the newest tasks that the caller submitted, holds or was assigned; for an overseer those of all agents."""
    keys = Keys(caller.namespace)

    async def fetch(client: Client) -> tuple[float, list[Task]]:
        ids = await (_newest_tasks(client, keys) if caller.oversees else _own_tasks(client, keys, caller.agent))
        since = await held_since(client, keys, caller.agent, backend.integrity)
        newest = sorted(ids, reverse=True)[:_MOST_TASKS]
        tasks = await load_tasks(client, keys, newest)
        mine = [task for task in tasks if caller.oversees or task.is_party(caller.agent, since)]
        return await redis_time.ask(client), mine

    now, tasks = await backend.read(fetch)
    views = [TaskView.of(task, whole=False) for task in tasks]
    return BoardAnswer(whole=caller.oversees, now=to_iso(now) or "", tasks=views)


async def grant_board(service: SearchServices, request: RequestContext) -> GrantsAnswer:
    """Show the grants and offers that the caller gave or received; for an overseer those of all registered agents."""
    if not request.caller.oversees:
        shared = await list_grants(service, request)
        grants = [*shared.granted_by_me, *shared.granted_to_me]
        return GrantsAnswer(whole=False, grants=grants, offers=shared.offers)
    keys = Keys(request.caller.namespace)
    rows = await service.backend.read(lambda client: _newest_grants(client, keys))
    now, board = redis_time.now(), GrantsAnswer(whole=True, grants=[], offers=[])
    lists: dict[bytes, list[GrantInfo]] = {b"active": board.grants, b"offered": board.offers}
    for grant_id, row in rows.items():
        if info := or_none(lambda row=row, grant_id=grant_id: _in_force(grant_id, row, now)):
            lists[row["state"]].append(info)
    return board


async def all_tasks(
    backend: Backend, caller: Caller, *, states: Sequence[TaskState], agent: str | None, limit: int
) -> TaskListAnswer:
    """List a namespace's newest tasks in some states (empty: any), of one agent or all; raises Forbidden."""
    check_oversees(caller)
    keys, found = Keys(caller.namespace), list[Task]()
    async for ids in _newest_ids(backend, keys.task("")):
        tasks = await backend.read(lambda client, ids=ids: load_tasks(client, keys, ids))
        in_state = (task for task in tasks if not states or task.state in states)
        found += [task for task in in_state if agent is None or task.is_party(agent)]
        if len(found) >= limit:
            break
    return TaskListAnswer(tasks=[TaskView.of(task) for task in found[:limit]])


async def all_grants(
    backend: Backend, caller: Caller, *, agent: str | None, ended: bool, limit: int
) -> GrantListAnswer:
    """List a namespace's newest grants and offers, of one agent or all, `ended` ones if asked; raises Forbidden."""
    check_oversees(caller)
    keys, found = Keys(caller.namespace), list[GrantState]()
    async for ids in _newest_ids(backend, keys.grant("")):
        rows = await backend.read(lambda client, ids=ids: _load_grants(client, keys, ids))
        grants = [or_none(lambda one=one, row=row: _grant_state(one, row)) for one, row in rows.items()]
        wanted = (grant for grant in filter(None, grants) if ended or grant.state in _IN_FORCE)
        found += [grant for grant in wanted if agent in (None, grant.from_agent, grant.to_agent)]
        if len(found) >= limit:
            break
    return GrantListAnswer(grants=found[:limit])


async def _own_tasks(client: Client, keys: Keys, agent: str) -> set[str]:
    pipe = client.pipeline(transaction=False)
    pipe.zrange(keys.submitted(agent), 0, _MOST_TASKS - 1, desc=True)
    pipe.smembers(keys.held(agent))
    pipe.xrevrange(keys.inbox(agent), count=_OF_EACH)
    submitted, held, assigned = await pipe.execute()
    return _ids([*submitted, *held, *(fields.get(b"task", b"") for _, fields in assigned)])


def _ids(found: Sequence[bytes]) -> set[str]:
    return {text for raw in found if is_id(text := raw.decode(errors="replace"))}


async def _newest_tasks(client: Client, keys: Keys) -> set[str]:
    """Return the ids of open and dead tasks, and of those that registered agents submitted last."""
    kinds, agents = await client.hkeys(keys.kinds), await client.zrange(keys.agents, 0, _OF_EACH - 1)
    pipe: Any = client.pipeline(transaction=False)
    pipe.xrevrange(keys.dead_tasks, count=_OF_EACH)
    for queue in (keys.leases, keys.unclaimed, keys.delayed, *(keys.backlog(kind.decode()) for kind in kinds)):
        pipe.zrange(queue, 0, _OF_EACH - 1)
    for name in agents:
        pipe.zrange(keys.submitted(name.decode()), 0, 49, desc=True)
    dead, *others = await pipe.execute()
    return _ids([*(fields.get(b"task", b"") for _, fields in dead), *(name for row in others for name in row)])


async def _newest_grants(client: Client, keys: Keys) -> dict[str, dict[str, bytes]]:
    pipe: Any = client.pipeline(transaction=False)
    for name in await client.zrange(keys.agents, 0, -1):
        pipe.hkeys(keys.granted(name.decode()))
        pipe.hkeys(keys.offers(name.decode()))
    ids = {raw.decode() for row in await pipe.execute() for raw in row}
    return await _load_grants(client, keys, sorted(ids, reverse=True)[:_MOST_GRANTS])


async def _load_grants(client: Client, keys: Keys, ids: Sequence[str]) -> dict[str, dict[str, bytes]]:
    pipe: Any = client.pipeline(transaction=False)
    for grant_id in ids:
        pipe.hgetall(keys.grant(grant_id))
    rows = zip(ids, await execute(pipe), strict=True)
    found = {grant_id: row for grant_id, row in rows if isinstance(row, dict) and row}
    return {grant_id: {name.decode(): value for name, value in row.items()} for grant_id, row in found.items()}


async def _newest_ids(backend: Backend, prefix: str) -> AsyncGenerator[Sequence[str]]:
    """Yield slices of the ids of all keys with a prefix, newest first. May omit keys created meanwhile."""
    names, cursor, more = set[bytes](), 0, True
    while more:
        cursor, found = await backend.read(
            lambda client, cursor=cursor: client.scan(cursor, match=f"{prefix}*", count=1000)
        )
        names.update(found)
        more = bool(cursor)
    ids = sorted((name.decode()[len(prefix) :] for name in names), reverse=True)
    for part in slices(ids, _SLICE):
        yield part


def _in_force(grant_id: str, row: dict[str, bytes], now: float) -> GrantInfo | None:
    is_in_force = row["state"].decode() in _IN_FORCE and float(row["until"]) > now
    return grant_info(grant_id, row) if is_in_force else None


def _grant_state(grant_id: str, row: dict[str, bytes]) -> GrantState:
    """Describe a grant. One whose time is over counts as expired before it is removed."""
    state = row["state"].decode()
    if state in _IN_FORCE and float(row["until"]) <= redis_time.now():
        state = "expired"
    return GrantState.model_validate(grant_info(grant_id, row).model_dump() | {"state": state})
