"""Signs what a share may give, from records that passed their own checks, before the Function decides on it.

The Function cannot sign: a replaced library must not be able to make grants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from memory_core.records import offer_proof, owners, redis_time
from memory_core.records.grant_proof import GrantProof
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.offer_proof import CLOCK_SECONDS, shown
from memory_core.records.scope import Grant, Principal, id_token
from memory_core.redis_client import Client
from memory_server.contract.sharing import ShareArguments
from memory_server.engine.principals import read_owners, resolve
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import RequestContext
from memory_server.index import loader
from memory_server.index.loader import Ref


class Selector(Protocol):
    """What a share selects: the letter and the values of its scope tokens, and the values to display."""

    @property
    def kind(self) -> str: ...
    @property
    def values(self) -> list[str]: ...
    @property
    def shown(self) -> list[str]: ...


async def sign_share(
    backend: Backend,
    request: RequestContext,
    args: ShareArguments,
    selector: Selector,
    *,
    grant: str,
    offer: str | None,
    offer_seconds: float,
    answers: bool,
) -> dict[str, Any]:
    """Return the ids of a share, and the codes of what it may write: owner ids, the grant, the offer.

    `answers` tells whether it accepts an offer. Then the grant ends with one that the target gave.

    Raises:
        Tampered: the owner id of an agent fails its check.
    """
    await backend.client()  # loads the signing key
    integrity, candidates = backend.integrity, [new_id(), new_id()]
    fields: dict[str, Any] = {"id": grant, "offer": offer, "candidates": candidates}
    if not integrity.signs:
        return fields
    namespace, agent, target = request.caller.namespace, request.caller.agent, args.target_agent
    grantor = await resolve(backend, RequestContext(request.caller))  # not as a batch read it before
    by, to = await read_owners(backend, namespace, agent), await read_owners(backend, namespace, target)
    by_owner, to_owner = by.current or candidates[0], to.current or candidates[1]
    now, seconds = redis_time.now() + CLOCK_SECONDS, args.expires_in_seconds
    ends = math.inf if seconds is None else now + seconds
    if answers:
        ends = max((held.ends for held in grantor.grants if held.grantor == target), default=0.0) + CLOCK_SECONDS
    proof = GrantProof(
        id=grant,
        by=agent,
        by_owner=by_owner,
        owner=to_owner,
        permission=args.permission,
        ends=ends * 1_000_000,
        tokens=frozenset(await grantable(backend, grantor, {*grantor.owners, by_owner}, selector)),
    )
    fields["proof"] = proof.sign(integrity, namespace, target)
    fields["proofs"] = [
        owners.proof(integrity, namespace, agent, candidates[0], by.since),
        owners.proof(integrity, namespace, target, candidates[1], to.since),
    ]
    if offer:
        described = {"from": agent, "to": target, "from_owner": by_owner, "to_owner": to_owner, "kind": selector.kind}
        described |= {"permission": args.permission, "note": args.note or "", "shown": shown(selector.shown)}
        until = now + (offer_seconds if seconds is None else seconds)
        fields["mac"] = offer_proof.sign(integrity, namespace, offer, described, until)
    return fields


async def grantable(backend: Backend, grantor: Principal, own: Iterable[str], selector: Selector) -> set[str]:
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
