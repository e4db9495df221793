"""What whoever runs the memory may see of it, whosever it is: all tasks and all grants of a namespace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory_core.errors import Forbidden
from memory_core.records.keys import Keys
from memory_core.records.task import Task, TaskState, load_tasks
from memory_core.store.connection import Client
from memory_server.contract.sharing import GrantListAnswer, GrantState
from memory_server.contract.tasks import TaskListAnswer, TaskView
from memory_server.engine.request import Caller
from memory_server.service import Service
from memory_server.sharing.shared_context import grant_info

_SLICE = 500
_IN_FORCE = ("active", "offered")


async def all_tasks(
    service: Service, caller: Caller, *, states: Sequence[TaskState], agent: str | None, limit: int
) -> TaskListAnswer:
    """List the newest tasks of the namespace, in some states or in any; of `agent`, those it submitted or has had.

    Raises:
        Forbidden: the caller is no admin.
    """
    _check_admin(caller)
    keys = Keys(caller.namespace)
    found: list[Task] = []
    ids = sorted(await _ids(service, keys.task("")), reverse=True)
    for start in range(0, len(ids), _SLICE):
        wanted = ids[start : start + _SLICE]
        tasks = await service.backend.read(lambda client, wanted=wanted: load_tasks(client, keys, wanted))
        found += [
            task for task in tasks if (not states or task.state in states) and (agent is None or task.is_party(agent))
        ]
        if len(found) >= limit:
            break
    return TaskListAnswer(tasks=[TaskView.of(task) for task in found[:limit]])


async def all_grants(
    service: Service, caller: Caller, *, agent: str | None, ended: bool, limit: int
) -> GrantListAnswer:
    """List the newest grants and offers of the namespace; of `agent`, those that it gave or was given.

    Without `ended` only what is in force or waits.

    Raises:
        Forbidden: the caller is no admin.
    """
    _check_admin(caller)
    keys = Keys(caller.namespace)
    found: list[GrantState] = []
    ids = sorted(await _ids(service, keys.grant("")), reverse=True)
    for start in range(0, len(ids), _SLICE):
        wanted = ids[start : start + _SLICE]
        now, rows = await service.backend.read(lambda client, wanted=wanted: _rows(client, keys, wanted))
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


def _check_admin(caller: Caller) -> None:
    if not caller.admin:
        raise Forbidden("only an admin sees what all agents have", hint="ask for what is yours")


async def _ids(service: Service, prefix: str) -> list[str]:
    """Give the ids of all keys with a prefix; those made meanwhile may be left out."""
    names: set[bytes] = set()
    cursor = 0
    while True:
        cursor, found = await service.backend.read(
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
