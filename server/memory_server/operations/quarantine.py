"""Quarantines, restores and purges what an agent wrote, for operators."""

from __future__ import annotations

from dataclasses import dataclass

from memory_core.errors import InvalidArgument, NotFound, echo
from memory_core.records import quarantine as quarantine_marks
from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.records.names import check_name
from memory_server.engine.redis_backend import Backend
from memory_server.index import queries
from memory_server.index import query_builder as build
from memory_server.memories.clear import DELETED_AT_ONCE, delete
from memory_server.service import Service

CONSOLE = "console"
_MOST = 256
"""Agents under quarantine in one namespace. Each adds a clause to every query."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An agent, and the time (epoch seconds) since when other agents do not see what it wrote."""

    agent: str
    since: float


async def quarantine(backend: Backend, namespace: str, agent: str, since: float) -> None:
    """Hide from others what an agent wrote since a time and will write; raises InvalidArgument at the limit."""
    if await _change(backend, namespace, agent, since) == "too_many":
        raise InvalidArgument(f"{_MOST} agents are under quarantine already", hint="purge and lift some of them")


async def lift(backend: Backend, namespace: str, agent: str) -> None:
    """Show what an agent wrote again; raises NotFound if it is not under quarantine."""
    if await _change(backend, namespace, agent, None) == "not_quarantined":
        raise NotFound(f"agent {echo(agent)} is not under quarantine", hint="`redis-memory quarantine list` shows all")


async def quarantined(backend: Backend, namespace: str) -> list[Quarantined]:
    """List the agents under quarantine, by name."""
    found = await backend.read(lambda client: client.hgetall(Keys(namespace).quarantined))
    marks = quarantine_marks.read(backend.integrity, namespace, found)
    return [Quarantined(name, since) for name, since in sorted(marks.items())]


async def count_written(service: Service, namespace: str, agent: str, since: float) -> int:
    """Count the memories that an agent wrote since a time, of any owner."""
    keys, written = Keys(namespace), build.written_by(check_name(agent, "agent"), since)
    timeout = service.settings.search_timeout_ms
    return await service.namespaces.search(namespace, lambda client: queries.count(client, keys, written, timeout))


async def purge(service: Service, namespace: str, agent: str, since: float) -> int:
    """Delete permanently what an agent wrote since a time; return how many memories. If interrupted, call again."""
    await service.namespaces.get(namespace)
    written, total = build.written_by(check_name(agent, "agent"), since), 0
    while ids := await memory_ids(service, namespace, written, DELETED_AT_ONCE):
        audit = system_entry(CONSOLE, "purge", ids)
        removed = await delete(service, namespace, ids, audit=audit, writer=agent, since=since)
        total += removed
        if not removed:
            break
    return total


async def memory_ids(service: Service, namespace: str, query: build.Query, limit: int) -> list[str]:
    """Return the ids of some memories that a query selects, `limit` at most."""
    keys, timeout = Keys(namespace), service.settings.search_timeout_ms
    refs = await service.namespaces.search(
        namespace, lambda client: queries.some(client, keys, query, limit=limit, timeout_ms=timeout)
    )
    return [ref.memory_id for ref in refs]


async def _change(backend: Backend, namespace: str, agent: str, since: float | None) -> str:
    await backend.client()  # loads the signing key
    keys, op = Keys(namespace), "lift_quarantine" if since is None else "quarantine"
    answer = await backend.write(
        "rm1_quarantine",
        [keys.audit, keys.counters, keys.quarantined],
        repeatable=since is not None,
        agent=check_name(agent, "agent"),
        mark=None if since is None else quarantine_marks.mark(backend.integrity, namespace, agent, since),
        most=_MOST,
        audit=system_entry(CONSOLE, op, [agent]),
    )
    return answer["status"]
