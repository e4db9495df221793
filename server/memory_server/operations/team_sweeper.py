"""What the clock demands of a team: agents that fell silent, leases that ran out, memories of those that left."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from memory_core.errors import MemoryServiceError
from memory_core.records import redis_time
from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_server.index import queries
from memory_server.index import query as build
from memory_server.memories.clear import delete
from memory_server.service import Service
from memory_server.tasks.dispatch import sweep_tasks

log = logging.getLogger(__name__)
_AT_ONCE = 100
_CLOCKS = 5


async def sweep_due_teams(service: Service) -> None:
    """Sweep the namespaces in which an agent, a lease or a pause is overdue, found in one round trip."""
    names = await service.namespaces.names()
    clocks = await service.backend.read(lambda client: _overdue(client, [Keys(name) for name in names]))
    for name, overdue in zip(names, clocks, strict=True):
        if not overdue:
            continue
        try:
            await sweep_team(service, name)
        except MemoryServiceError as error:
            log.warning("sweep of the team in %s: %s", name, error.message)


async def _overdue(client: Client, namespaces: Sequence[Keys]) -> list[int]:
    """Count what is overdue in each namespace."""
    pipe, now = client.pipeline(transaction=False), redis_time.now()
    for keys in namespaces:
        pipe.zcount(keys.agents, 0, now)
        for clock in (keys.leases, keys.unclaimed, keys.delayed, keys.deadlines):
            pipe.zcount(clock, "-inf", now)
    counts = await pipe.execute() if namespaces else []
    return [sum(counts[start : start + _CLOCKS]) for start in range(0, len(counts), _CLOCKS)]


async def sweep_team(service: Service, namespace: str) -> None:
    """Put agents, tasks and what is left of unregistered agents right."""
    await _sweep_agents(service, namespace)
    await sweep_tasks(service, namespace)
    await _purge(service, namespace)


async def _sweep_agents(service: Service, namespace: str) -> None:
    """Mark agents dead whose next sign of life is overdue, and hand their tasks on."""
    keys = Keys(namespace)
    overdue = await service.backend.read(lambda client: client.zrangebyscore(keys.agents, 0, redis_time.now()))
    for name in overdue:
        await _declare_dead(service, keys, name.decode())


async def _declare_dead(service: Service, keys: Keys, name: str) -> None:
    more = True
    while more:
        answer = await service.backend.write(
            "rm1_agent_lost",
            [keys.agent(name)],
            repeatable=True,
            prefix=keys.prefix,
            agent=name,
            reason=f"{name} fell silent",
            audit=system_entry("server", "agent_died", [name]),
            keep=service.settings.tasks.keep_seconds,
        )
        more = answer["more"]


async def _purge(service: Service, namespace: str) -> None:
    """Remove the memories of deleted owner ids, a slice at a time, then the tombstones."""
    keys, timeout = Keys(namespace), service.settings.search_timeout_ms
    for raw in await service.backend.read(lambda client: client.smembers(keys.tombstones)):
        owner = raw.decode()
        doomed = build.memories(build.of_owner(owner))

        async def fetch(client: Client, doomed: build.Query = doomed) -> list[str]:
            refs = await queries.some(client, keys, doomed, limit=_AT_ONCE, timeout_ms=timeout)
            return [ref.memory_id for ref in refs]

        while ids := await service.namespaces.search(namespace, fetch):
            if not await delete(service, namespace, ids, owners=[owner], audit=system_entry("server", "purge", ids)):
                break
        else:
            await service.backend.write("rm1_agent_purged", [keys.tombstones, keys.owner(owner)], owner=owner)
            service.vault.forget(namespace, owner)
