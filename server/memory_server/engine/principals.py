"""Turns a name that the connection vouches for into a principal, and names into owner ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from memory_core.errors import Forbidden, echo
from memory_core.records import grant
from memory_core.records.audit_entry import Said, said
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.names import NAME_PATTERN, SEPARATOR
from memory_core.records.scope import Principal
from memory_core.store.connection import Client
from memory_server.engine.backend import Backend
from memory_server.engine.batch_cache import once
from memory_server.index.query import NOBODY

_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Caller:
    """What the connection says of a request: which agent, in which namespace.

    Without `may_read` no other memories are shown beside what was asked for. Who `sees_server` is shown figures that
    all agents' activity moves: an admin, or anybody while authentication is off and names are believed. `by` is the
    admin who acts as the agent, and `origin` where the request came from.
    """

    namespace: str
    agent: str
    admin: bool = False
    may_read: bool = True
    sees_server: bool = True
    by: str | None = None
    origin: str = ""

    def audit(self, op: str, ids: Sequence[str] = (), shown: Sequence[str] = ()) -> Said:
        """Say for the audit what this caller does to what, and what else it is shown by that."""
        return said(self.agent, op, ids, self.origin, by=self.by, shown=shown)


async def resolve(backend: Backend, caller: Caller) -> Principal:
    """Look up the caller's owner ids and the grants to it; one that never wrote has no owner id."""
    keys = Keys(caller.namespace)

    async def fetch(client: Client) -> list[Any]:
        pipe = client.pipeline(transaction=False)
        grant.ask(pipe, keys, caller.agent)
        return await pipe.execute()

    async def look_up() -> Principal:
        rows = await backend.read(fetch)
        return grant.principal_of(caller.namespace, caller.agent, caller.admin, rows)

    return await once(("principal", caller), look_up)


async def resolve_writer(backend: Backend, caller: Caller) -> Principal:
    """Like `resolve`, issuing an owner id to an agent that has none yet."""
    principal = await resolve(backend, caller)
    if principal.owner:
        return principal
    keys, candidate = Keys(caller.namespace), new_id()
    await backend.write(
        "rm1_owner",
        [keys.agent(caller.agent), keys.owner(candidate)],
        repeatable=True,
        candidate=candidate,
        agent=caller.agent,
    )
    return await resolve(backend, caller)


def check_writes_as(caller: Caller, agent_id: str | None) -> Caller:
    """Accept an `agent_id` argument of a write only from the agent itself or an admin.

    Raises:
        Forbidden: it names somebody else.
    """
    if agent_id is None or agent_id == caller.agent:
        return caller
    if caller.admin:
        return replace(caller, agent=agent_id, by=caller.agent)
    raise Forbidden(
        f"agent_id {echo(agent_id)} is not you ({caller.agent}); writes act as the connected agent",
        hint="leave agent_id out",
    )


async def owners_of(backend: Backend, principal: Principal, names: Sequence[str]) -> tuple[str, ...]:
    """Give the owner ids behind agent names, for filtering. Names nobody has filter for nobody."""
    if not names:
        return ()
    keys = Keys(principal.namespace)

    async def fetch(client: Client) -> list[bytes | None]:
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.hget(keys.agent(name if _NAME.fullmatch(name) else NOBODY), "owners")
        return await pipe.execute()

    found = await backend.read(fetch)
    owners = tuple(owner for row in found if row for owner in row.decode().split(SEPARATOR))
    return owners or (NOBODY,)
