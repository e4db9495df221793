"""Looks up the principal behind a caller, and the owner ids behind agent names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from memory_core.records import grant, owners
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.names import NAME_PATTERN, SEPARATOR, split_labels
from memory_core.records.owners import Owners
from memory_core.records.scope import NOBODY, Principal
from memory_core.redis_client import Client
from memory_server.engine.batch_cache import once
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import RequestContext

_NAME = re.compile(NAME_PATTERN)
SIGNING_ATTEMPTS = 4
"""Tries to sign a record and to write it before what it depends on has changed."""


async def resolve(backend: Backend, request: RequestContext) -> Principal:
    """Look up the caller's owner ids and the grants to it; an agent that never wrote has no owner id."""
    caller = request.caller
    keys = Keys(caller.namespace)

    async def fetch(client: Client) -> Principal:
        pipe = client.pipeline(transaction=False)
        grant.ask(pipe, keys, caller.agent)
        rows = await pipe.execute()
        principal = grant.principal_of(caller.namespace, caller.agent, caller.admin, rows, backend.integrity)
        return principal.of_public() if caller.public_only else principal

    return await once(request.cache, ("principal", caller), lambda: backend.read(fetch))


async def resolve_writer(backend: Backend, request: RequestContext) -> Principal:
    """Like `resolve`, issuing an owner id to an agent that has none yet."""
    principal, attempts = await resolve(backend, request), SIGNING_ATTEMPTS
    while principal.owner is None and attempts:
        await issue_owner(backend, request.caller.namespace, request.caller.agent)
        principal, attempts = await resolve(backend, request), attempts - 1
    return principal


async def issue_owner(backend: Backend, namespace: str, agent: str) -> None:
    """Give an agent an owner id, unless it has one or somebody leaves its name right now."""
    candidate, keys = new_id(), Keys(namespace)
    await backend.write(
        "rm1_owner",
        [keys.agent(agent), keys.owner(candidate)],
        repeatable=True,
        candidate=candidate,
        agent=agent,
        proof=await prove_owner(backend, namespace, agent, candidate),
    )


async def prove_owner(backend: Backend, namespace: str, agent: str, candidate: str) -> dict[str, str] | None:
    """Sign a new owner id for a name; None without a key. Raises Tampered if the name has one that fails its check."""
    since = (await read_owners(backend, namespace, agent)).since
    return owners.proof(backend.integrity, namespace, agent, candidate, since)


async def read_owners(backend: Backend, namespace: str, agent: str) -> Owners:
    """Read the owner ids of an agent's name; raises Tampered if the current one fails its check."""
    key = Keys(namespace).agent(agent)
    row = await backend.read(lambda client: client.hmget(key, owners.FIELDS))
    return owners.read(backend.integrity, namespace, agent, row)


async def owners_of(backend: Backend, principal: Principal, names: Sequence[str]) -> tuple[str, ...]:
    """Return the owner ids behind agent names, for filters, with kept ones. Unknown names match nothing."""
    if not names:
        return ()
    keys = Keys(principal.namespace)

    async def fetch(client: Client) -> list[list[bytes | None]]:
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.hmget(keys.agent(name if _NAME.fullmatch(name) else NOBODY), ["owners", "kept"])
        return await pipe.execute()

    rows = await backend.read(fetch)
    found = tuple(owner for row in rows for part in row if part for owner in part.decode().split(SEPARATOR))
    return found or (NOBODY,)


async def holder_of(backend: Backend, namespace: str, owner: str) -> Principal:
    """Look up the agent that has an owner id, without its grants: for what counts against its quota."""
    keys = Keys(namespace)

    async def fetch(client: Client) -> Principal:
        name = str(await client.hget(keys.owner(owner), "agent") or b"", "ascii")
        row = await client.hmget(keys.agent(name), ["owners", "kept"])
        of, left = (split_labels(part and part.decode()) for part in row)
        return Principal(namespace, name, owners=of, kept=left)

    return await backend.read(fetch)
