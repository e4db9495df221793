"""Takes what an agent wrote out of everybody's sight, and back or away for good; for whoever runs the memory."""

from __future__ import annotations

from dataclasses import dataclass

from memory_core.errors import InvalidArgument, NotFound, echo
from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.records.names import check_name
from memory_core.records.times import to_redis
from memory_core.redis_client import Client
from memory_server.engine.backend import Backend
from memory_server.index import queries
from memory_server.index import query as build
from memory_server.memories.clear import delete
from memory_server.service import Service

CONSOLE = "console"
_MOST = 256
"""Agents under quarantine in a namespace: each is a clause of every query."""
_SLICE = 200


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An agent of whom nobody else sees what it wrote since a time (epoch seconds)."""

    agent: str
    since: float


async def quarantine(backend: Backend, namespace: str, agent: str, since: float) -> None:
    """Hide from all others what an agent wrote since a time and what it will write.

    Raises:
        InvalidArgument: the name is none, or too many agents are under quarantine.
    """
    if await _change(backend, namespace, agent, since) == "too_many":
        raise InvalidArgument(f"{_MOST} agents are under quarantine already", hint="purge some, and lift theirs")


async def lift(backend: Backend, namespace: str, agent: str) -> None:
    """Show again what an agent wrote.

    Raises:
        NotFound: it is not under quarantine.
    """
    if await _change(backend, namespace, agent, None) == "not_quarantined":
        raise NotFound(f"agent {echo(agent)} is not under quarantine", hint="`redis-memory quarantine list` shows all")


async def quarantined(backend: Backend, namespace: str) -> list[Quarantined]:
    """Give the agents under quarantine, by name."""
    keys = Keys(namespace)
    found = await backend.read(lambda client: client.hgetall(keys.quarantined))
    return sorted((Quarantined(name.decode(), float(at)) for name, at in found.items()), key=lambda one: one.agent)


async def count_written(service: Service, namespace: str, agent: str, since: float) -> int:
    """Count the memories that an agent wrote since a time, whoever owns them."""
    keys, written = Keys(namespace), build.written_by(check_name(agent, "agent"), since)

    async def fetch(client: Client) -> int:
        return await queries.count(client, keys, written, service.settings.search_timeout_ms)

    return await service.namespaces.search(namespace, fetch)


async def purge(service: Service, namespace: str, agent: str, since: float) -> int:
    """Remove for good what an agent wrote since a time, slice by slice; give how much.

    Stopped midway it has removed a part; called again it removes the rest.

    Raises:
        StoreUnavailable, OutcomeUnknown: Redis does not answer.
    """
    await service.namespaces.get(namespace)
    keys, written = Keys(namespace), build.written_by(check_name(agent, "agent"), since)

    async def fetch(client: Client) -> list[str]:
        refs = await queries.some(client, keys, written, limit=_SLICE, timeout_ms=service.settings.search_timeout_ms)
        return [ref.memory_id for ref in refs]

    total = 0
    while ids := await service.namespaces.search(namespace, fetch):
        removed = await delete(
            service, namespace, ids, audit=system_entry(CONSOLE, "purge", ids), writer=agent, since=since
        )
        total += removed
        if not removed:
            break
    return total


async def _change(backend: Backend, namespace: str, agent: str, since: float | None) -> str:
    keys = Keys(namespace)
    op = "lift_quarantine" if since is None else "quarantine"
    answer = await backend.write(
        "rm1_quarantine",
        [keys.audit, keys.counters, keys.quarantined],
        repeatable=since is not None,
        agent=check_name(agent, "agent"),
        since=None if since is None else to_redis(since),
        most=_MOST,
        audit=system_entry(CONSOLE, op, [agent]),
    )
    return answer["status"]
