"""Handles what is overdue in a team: silent agents, expired leases, memories of deleted owners."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from memory_core.errors import MemoryServiceError
from memory_core.records import owners, redis_time
from memory_core.records.audit_entry import system_entry
from memory_core.records.damage import execute, or_none
from memory_core.records.ids import is_id
from memory_core.records.keys import Keys
from memory_core.records.names import NAME_PATTERN
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_server.engine.damage import readable
from memory_server.index import query_builder as build
from memory_server.memories.clear import DELETED_AT_ONCE, delete
from memory_server.operations.quarantine import memory_ids
from memory_server.service import Service
from memory_server.tasks.routing import sweep_tasks, write_in_slices

log = logging.getLogger(__name__)
_CLOCKS = 6


async def sweep_due_teams(service: Service) -> None:
    """Sweep the namespaces with an overdue agent, lease or delay, which one round trip finds."""
    names = await service.namespaces.names()
    clocks = await service.backend.read(lambda client: _overdue(client, [Keys(name) for name in names]))
    for name, overdue in zip(names, clocks, strict=True):
        if overdue != 0:
            with keeps_on(service, f"sweep of the team in {name}"):
                if overdue is None:
                    await tidy(service, name)
                await sweep_team(service, name)


@contextmanager
def keeps_on(service: Service, what: str) -> Generator[None]:
    """Log and count a failure in one namespace, so that the others are still swept."""
    try:
        yield
    except MemoryServiceError as error:
        log.warning("%s: %s", what, error.message)
    except Exception:
        service.counters.sweeps["failed"] += 1
        log.exception("%s failed", what)


async def tidy(service: Service, namespace: str) -> None:
    """Remove keys of another type, and what is damaged of some agents."""
    keys = Keys(namespace)
    await service.backend.write("rm1_tidy", [keys.leases], repeatable=True, prefix=keys.prefix)


async def _overdue(client: Client, namespaces: Sequence[Keys]) -> list[int | None]:
    """Count what is overdue in each namespace; None where a key is of another type."""
    pipe, now = client.pipeline(transaction=False), redis_time.now()
    for keys in namespaces:
        pipe.zcount(keys.agents, 0, now)
        for clock in (keys.leases, keys.unclaimed, keys.delayed, keys.deadlines):
            pipe.zcount(clock, "-inf", now)
        pipe.scard(keys.unsettled)
    counts = await execute(pipe) if namespaces else []
    return [or_none(lambda part=part: sum(part)) for part in slices(counts, _CLOCKS)]


async def sweep_team(service: Service, namespace: str) -> None:
    """Mark silent agents dead and reassign their tasks, sweep tasks, and purge deleted owners."""
    keys = Keys(namespace)
    overdue = await service.backend.read(lambda client: client.zrangebyscore(keys.agents, 0, redis_time.now()))
    for name in await readable(service.backend, keys.agents, overdue, _agent_name):
        reason, audit = f"{name} fell silent", system_entry("server", "agent_died", [name])
        key = keys.agent(name)
        await write_in_slices(service, namespace, "rm1_agent_lost", key, agent=name, reason=reason, audit=audit)
    await sweep_tasks(service, namespace)
    await _purge(service, namespace)


def _agent_name(raw: bytes) -> str:
    if not re.fullmatch(NAME_PATTERN, name := raw.decode()):
        raise ValueError("not a name")
    return name


def _owner_id(raw: bytes) -> str:
    if not is_id(owner := raw.decode()):
        raise ValueError("not an owner id")
    return owner


async def _purge(service: Service, namespace: str) -> None:
    keys = Keys(namespace)
    tombstones = await service.backend.read(lambda client: client.smembers(keys.tombstones))
    for owner in await readable(service.backend, keys.tombstones, tombstones, _owner_id):
        code = await service.backend.read(lambda client, owner=owner: client.hget(keys.owner(owner), "deleted"))
        if owners.check_tombstone(service.backend.integrity, namespace, owner, code):
            continue  # hides its memories, but must not destroy them
        while ids := await memory_ids(service, namespace, build.memories(build.of_owner(owner)), DELETED_AT_ONCE):
            if not await delete(service, namespace, ids, owners=[owner], audit=system_entry("server", "purge", ids)):
                break
        else:
            await service.backend.write("rm1_agent_purged", [keys.tombstones, keys.owner(owner)], owner=owner)
            service.vault.forget(namespace, owner)
