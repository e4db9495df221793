"""Handles what is overdue in a team: silent agents, expired leases, memories of deleted owners."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from memory_core.errors import MemoryServiceError
from memory_core.records import owners, redis_time
from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_server.index import query_builder as build
from memory_server.memories.clear import DELETED_AT_ONCE, delete
from memory_server.operations.quarantine import memory_ids
from memory_server.service import Service
from memory_server.tasks.routing import sweep_tasks, write_in_slices

log = logging.getLogger(__name__)
_CLOCKS = 5


async def sweep_due_teams(service: Service) -> None:
    """Sweep the namespaces with an overdue agent, lease or delay, which one round trip finds."""
    names = await service.namespaces.names()
    clocks = await service.backend.read(lambda client: _overdue(client, [Keys(name) for name in names]))
    for name, overdue in zip(names, clocks, strict=True):
        if overdue:
            try:
                await sweep_team(service, name)
            except MemoryServiceError as error:
                log.warning("sweep of the team in %s: %s", name, error.message)


async def _overdue(client: Client, namespaces: Sequence[Keys]) -> list[int]:
    pipe, now = client.pipeline(transaction=False), redis_time.now()
    for keys in namespaces:
        pipe.zcount(keys.agents, 0, now)
        for clock in (keys.leases, keys.unclaimed, keys.delayed, keys.deadlines):
            pipe.zcount(clock, "-inf", now)
    counts = await pipe.execute() if namespaces else []
    return [sum(part) for part in slices(counts, _CLOCKS)]


async def sweep_team(service: Service, namespace: str) -> None:
    """Mark silent agents dead and reassign their tasks, sweep tasks, and purge deleted owners."""
    keys = Keys(namespace)
    overdue = await service.backend.read(lambda client: client.zrangebyscore(keys.agents, 0, redis_time.now()))
    for name in [raw.decode() for raw in overdue]:
        reason, audit = f"{name} fell silent", system_entry("server", "agent_died", [name])
        key = keys.agent(name)
        await write_in_slices(service, namespace, "rm1_agent_lost", key, agent=name, reason=reason, audit=audit)
    await sweep_tasks(service, namespace)
    await _purge(service, namespace)


async def _purge(service: Service, namespace: str) -> None:
    keys = Keys(namespace)
    for raw in await service.backend.read(lambda client: client.smembers(keys.tombstones)):
        owner = raw.decode()
        code = await service.backend.read(lambda client, owner=owner: client.hget(keys.owner(owner), "deleted"))
        if owners.check_tombstone(service.backend.integrity, namespace, owner, code):
            continue  # hides its memories, but must not destroy them
        while ids := await memory_ids(service, namespace, build.memories(build.of_owner(owner)), DELETED_AT_ONCE):
            if not await delete(service, namespace, ids, owners=[owner], audit=system_entry("server", "purge", ids)):
                break
        else:
            await service.backend.write("rm1_agent_purged", [keys.tombstones, keys.owner(owner)], owner=owner)
            service.vault.forget(namespace, owner)
