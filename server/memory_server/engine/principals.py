"""Looks up the principal behind a caller, and the owner ids behind agent names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from memory_core.records import grant, owners
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.names import NAME_PATTERN, SEPARATOR
from memory_core.records.scope import NOBODY, Principal
from memory_core.redis_client import Client
from memory_server.engine.batch_cache import once
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import RequestContext

_NAME = re.compile(NAME_PATTERN)


async def resolve(backend: Backend, request: RequestContext) -> Principal:
    """Look up the caller's owner ids and the grants to it; an agent that never wrote has no owner id."""
    caller = request.caller
    keys = Keys(caller.namespace)

    async def fetch(client: Client) -> Principal:
        pipe = client.pipeline(transaction=False)
        grant.ask(pipe, keys, caller.agent)
        rows = await pipe.execute()
        return grant.principal_of(caller.namespace, caller.agent, caller.admin, rows, backend.integrity)

    return await once(request.cache, ("principal", caller), lambda: backend.read(fetch))


async def resolve_writer(backend: Backend, request: RequestContext) -> Principal:
    """Like `resolve`, issuing an owner id to an agent that has none yet."""
    principal = await resolve(backend, request)
    if principal.owner:
        return principal
    caller, candidate = request.caller, new_id()
    keys = Keys(caller.namespace)
    names = [keys.agent(caller.agent), keys.owner(candidate)]
    proof = owners.proof(backend.integrity, caller.namespace, caller.agent, candidate)
    await backend.write("rm1_owner", names, repeatable=True, candidate=candidate, agent=caller.agent, proof=proof)
    return await resolve(backend, request)


async def owners_of(backend: Backend, principal: Principal, names: Sequence[str]) -> tuple[str, ...]:
    """Return the owner ids behind agent names, for filters. Unknown names match nothing."""
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
