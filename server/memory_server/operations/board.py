"""Tasks and grants as somebody sees them who looks on: an agent those that concern it, an operator all."""

from __future__ import annotations

from typing import Any

from memory_core.errors import Forbidden
from memory_core.records.keys import Keys
from memory_core.records.task import Task, load_tasks
from memory_core.records.times import to_iso
from memory_core.store import redis_time
from memory_core.store.connection import Client
from memory_server.contract.dashboard import BoardAnswer, GrantsAnswer
from memory_server.contract.sharing import GrantInfo
from memory_server.contract.tasks import TaskView
from memory_server.engine.request import Caller, RequestContext
from memory_server.service import Service
from memory_server.sharing.shared_context import Wanted, get_shared_context, grant_info

MOST_TASKS = 500
_OF_EACH = 200
_MOST_GRANTS = 1000
_OPERATOR = "open the dashboard by the one-time URL that `redis-memory dashboard` prints, or use an admin's token"


def check_operator(caller: Caller) -> None:
    """Let pass who may see all of a namespace.

    Raises:
        Forbidden: the caller acts for one agent alone.
    """
    if not caller.admin:
        raise Forbidden("this is for the operator", hint=_OPERATOR)


async def task_board(service: Service, caller: Caller) -> BoardAnswer:
    """Show the newest tasks that the caller submitted, holds or was assigned; to an admin those of all."""
    keys = Keys(caller.namespace)

    async def fetch(client: Client) -> tuple[float, list[Task]]:
        names = await (_all_tasks(client, keys) if caller.admin else _own_tasks(client, keys, caller.agent))
        newest = sorted(names, reverse=True)[:MOST_TASKS]
        seconds, microseconds = await client.time()
        return seconds + microseconds / 1e6, await load_tasks(client, keys, newest)

    now, tasks = await service.backend.read(fetch)
    seen = [task for task in tasks if caller.admin or task.is_party(caller.agent)]
    return BoardAnswer(
        whole=caller.admin, now=to_iso(now) or "", tasks=[TaskView.of(task, whole=False) for task in seen]
    )


async def grants(service: Service, request: RequestContext) -> GrantsAnswer:
    """Show the grants and offers that the caller is a side of; to an admin those of all registered agents."""
    if not request.caller.admin:
        shown = await get_shared_context(service, request, Wanted(max_tokens=1))
        given = [*shown.granted_by_me, *shown.granted_to_me]
        return GrantsAnswer(whole=False, grants=given, offers=shown.offers)
    keys = Keys(request.caller.namespace)
    rows = await service.backend.read(lambda client: _all_grants(client, keys))
    now, listed = redis_time.now(), GrantsAnswer(whole=True, grants=[], offers=[])
    for grant_id, row in rows:
        if row and float(row["until"]) > now:
            lists: dict[bytes, list[GrantInfo]] = {b"active": listed.grants, b"offered": listed.offers}
            lists.get(row["state"], []).append(grant_info(grant_id, row))
    return listed


async def _own_tasks(client: Client, keys: Keys, agent: str) -> set[str]:
    pipe = client.pipeline(transaction=False)
    pipe.zrange(keys.submitted(agent), 0, MOST_TASKS - 1, desc=True)
    pipe.smembers(keys.held(agent))
    pipe.xrevrange(keys.inbox(agent), count=_OF_EACH)
    submitted, held, assigned = await pipe.execute()
    return {name.decode() for name in (*submitted, *held, *(fields[b"task"] for _, fields in assigned))}


async def _all_tasks(client: Client, keys: Keys) -> set[str]:
    """Name what is under way, what was given up, and what registered agents submitted last."""
    kinds, agents = await client.hkeys(keys.kinds), await client.zrange(keys.agents, 0, _OF_EACH - 1)
    pipe: Any = client.pipeline(transaction=False)
    pipe.xrevrange(keys.dead_tasks, count=_OF_EACH)
    for queue in (keys.leases, keys.unclaimed, keys.delayed, *(keys.backlog(kind.decode()) for kind in kinds)):
        pipe.zrange(queue, 0, _OF_EACH - 1)
    for name in agents:
        pipe.zrange(keys.submitted(name.decode()), 0, 49, desc=True)
    dead, *others = await pipe.execute()
    return {name.decode() for name in (*(fields[b"task"] for _, fields in dead), *(n for row in others for n in row))}


async def _all_grants(client: Client, keys: Keys) -> list[tuple[str, dict[str, bytes]]]:
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
