"""Signs what a share may give, from records that passed their own checks, before the Function decides on it.

The Function cannot sign: a replaced library must not be able to make grants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from memory_core.crypto.integrity import Authority, Integrity, IntegrityFailure
from memory_core.records import owners, redis_time
from memory_core.records.codec import unpack
from memory_core.records.grant_proof import GrantProof
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.names import SEPARATOR
from memory_core.records.owners import Owners
from memory_core.records.scope import Grant, Principal, id_token
from memory_core.redis_client import Client
from memory_server.contract.sharing import ShareArguments
from memory_server.engine.principals import resolve
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import RequestContext
from memory_server.index import loader
from memory_server.index.loader import Ref

_CLOCK_SECONDS = 5
"""How far this process's clock may be behind that of Redis, which sets the end of a grant."""


class Selector(Protocol):
    """What a share selects: the letter and the values of its scope tokens, and the values to display."""

    @property
    def kind(self) -> str: ...
    @property
    def values(self) -> list[str]: ...
    @property
    def shown(self) -> list[str]: ...


async def sign_share(
    backend: Backend, request: RequestContext, args: ShareArguments, selector: Selector, grant_id: str
) -> dict[str, Any]:
    """Return the new ids for a share, and the codes of what it may write: owner ids, the grant, the offer.

    Raises:
        Tampered: the owner id of an agent fails its check.
    """
    await backend.client()  # loads the signing key
    integrity, candidates = backend.integrity, [new_id(), new_id()]
    fields: dict[str, Any] = {"id": grant_id, "candidates": candidates}
    if not integrity.signs:
        return fields
    namespace, agent, target = request.caller.namespace, request.caller.agent, args.target_agent
    grantor = await resolve(backend, RequestContext(request.caller))  # not as a batch read it before
    grantee = await read_owners(backend, namespace, target)
    seconds = args.expires_in_seconds
    proof = GrantProof(
        id=grant_id,
        by=agent,
        by_owner=grantor.owner or candidates[0],
        owner=grantee.current or candidates[1],
        permission=args.permission,
        ends=math.inf if seconds is None else (redis_time.now() + seconds + _CLOCK_SECONDS) * 1_000_000,
        tokens=frozenset(await _tokens(backend, grantor, {*grantor.owners, grantor.owner or candidates[0]}, selector)),
    )
    return fields | {
        "proof": proof.sign(integrity, namespace, target),
        "proofs": [owners.proof(integrity, namespace, *pair) for pair in zip((agent, target), candidates, strict=True)],
        "mac": integrity.sign_authority(
            Authority.OFFER, namespace, target, agent, selector.kind, args.permission, SEPARATOR.join(selector.shown)
        ),
    }


def is_genuine_offer(integrity: Integrity, namespace: str, row: dict[str, bytes]) -> bool:
    """Whether the server wrote the record of an offer: what `from` asks `to` to share in return."""
    failure = offer_failure(integrity, namespace, row)
    if failure:
        integrity.note_authority(Authority.OFFER, namespace, row["to"].decode(), failure)
    return failure is None


def offer_failure(integrity: Integrity, namespace: str, row: dict[str, bytes]) -> IntegrityFailure | None:
    """Check the record of an offer, without a log entry."""
    target, signed = _signed_offer(row)
    return integrity.inspect_authority(Authority.OFFER, namespace, target, row.get("mac", b"").decode(), *signed)


def sign_offer(integrity: Integrity, namespace: str, row: dict[str, bytes]) -> str:
    """Return the code of the record of an offer that exists already."""
    target, signed = _signed_offer(row)
    return integrity.sign_authority(Authority.OFFER, namespace, target, *signed)


def _signed_offer(row: dict[str, bytes]) -> tuple[str, tuple[str, ...]]:
    named = tuple(row[name].decode() for name in ("from", "kind", "permission"))
    return row["to"].decode(), (*named, SEPARATOR.join(map(str, unpack(row["values"]))))


async def read_owners(backend: Backend, namespace: str, agent: str) -> Owners:
    """Read the owner ids of an agent's name; raises Tampered if the current one fails its check."""
    key = Keys(namespace).agent(agent)
    row = await backend.read(lambda client: client.hmget(key, owners.FIELDS))
    return owners.read(backend.integrity, namespace, agent, row)


async def _tokens(backend: Backend, grantor: Principal, own: Iterable[str], selector: Selector) -> set[str]:
    """Return what a selector covers of the grantor's own memories, and of others that it may pass on."""
    parents = [grant for grant in grantor.grants if grant.may_write and grant.own]
    if selector.kind == "i":
        return await _id_tokens(backend, grantor, parents, selector.values)
    tokens = {f"{selector.kind}:{owner}:{value}" for owner in own for value in selector.values}
    wanted = {(selector.kind, value) for value in selector.values}
    return tokens | {token for parent in parents for token in parent.own if _label_of(token) in wanted}


async def _id_tokens(backend: Backend, grantor: Principal, parents: Sequence[Grant], ids: Sequence[str]) -> set[str]:
    keys, refs = Keys(grantor.namespace), [Ref(memory_id) for memory_id in ids]

    async def load(client: Client) -> list[Any]:
        return await loader.load(client, keys, refs, backend.integrity)

    return {
        id_token(record.id)
        for record in await backend.read(load)
        if grantor.owns(record.owner) or any(not record.scope.isdisjoint(parent.own) for parent in parents)
    }


def _label_of(token: str) -> tuple[str, str]:
    kind, _, rest = token.partition(":")
    return kind, rest.partition(":")[2]
