"""Answering offers: the other direction of a two-way grant, and the memories of an agent that left."""

from __future__ import annotations

from typing import Any

from memory_core.errors import Conflict
from memory_core.records import offer_proof, owners, redis_time
from memory_core.records.codec import unpack
from memory_core.records.damage import or_none
from memory_core.records.keys import Keys
from memory_core.records.memory import MemoryType
from memory_core.records.scope import Principal
from memory_core.redis_client import Client
from memory_server.contract.sharing import GrantInfo, OfferAnswer, OfferArguments, ShareArguments
from memory_server.contract.validation import check_id
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import RequestContext
from memory_server.memories.services import MemoryServices
from memory_server.sharing.grants import decline_offer, no_offer, share_back
from memory_server.sharing.shared_context import grant_info


async def answer_offer(service: MemoryServices, request: RequestContext, args: OfferArguments) -> OfferAnswer:
    """Accept or decline an offer to the caller, and return what is in force then.

    Raises:
        NotFound: no offer with that id waits for the caller.
        QuotaExceeded: a transfer does not fit into the caller's quota; the offer still waits.
        Conflict: the other agent has reached its limit of grants, or the caller its limit of transfers.
    """
    offer_id = check_id(args.offer_id, "offer_id")
    if not args.accept:
        await decline_offer(service, request, offer_id)
        return OfferAnswer(offer_id=offer_id, accepted=False)
    principal = await resolve(service.backend, request)
    offer, given = await _load(service, principal, offer_id)
    if offer.transfer:
        return await _take_over(service, request, principal, offer, given)
    labels: dict[str, Any] = {"context": offer.context, "tags": offer.tags or None}
    types = [MemoryType(name) for name in offer.memory_types] or None
    share = ShareArguments(target_agent=offer.from_agent, permission=offer.permission, memory_types=types, **labels)
    given = await share_back(service, request, share, offer_id)
    return OfferAnswer(
        offer_id=offer_id,
        accepted=True,
        from_agent=offer.from_agent,
        grant_id=given.grant_id,
        covers=given.covers,
        permission=given.permission,
        expires_at=given.expires_at,
    )


async def _load(service: MemoryServices, principal: Principal, offer_id: str) -> tuple[GrantInfo, dict[str, str]]:
    """Load an offer that waits for the principal, and the owner ids that it transfers, with their codes.

    The codes are those that the server made when it offered. Without a key there are none.
    """
    keys, integrity = Keys(principal.namespace), service.backend.integrity

    async def fetch(client: Client) -> list[Any]:
        pipe = client.pipeline(transaction=False)
        pipe.hgetall(keys.grant(offer_id))
        pipe.hget(keys.offers(principal.agent), offer_id)
        pipe.hget(keys.agent(principal.agent), "since")
        return await pipe.execute()

    found, packed, since = await service.backend.read(fetch)
    row: dict[str, bytes] = {name.decode(): value for name, value in found.items()}
    entry: dict[str, Any] | None = or_none(lambda: unpack(packed)) if packed else None
    if not row or entry is None or entry["owner"] != principal.owner or float(row["until"]) <= redis_time.now():
        raise no_offer(offer_id)
    if not offer_proof.is_genuine(integrity, keys.namespace, offer_id, row):
        raise no_offer(offer_id)
    info, codes = grant_info(offer_id, row), dict(entry.get("proofs") or {})
    offered = [token.removeprefix("o:") for token in entry["own"]] if info.transfer else []
    given = owners.given(integrity, keys.namespace, principal.agent, codes, offered, (since or b"").decode())
    if info.transfer and not given:
        raise no_offer(offer_id)
    return info, {owner: codes.get(owner, "") for owner in given}


async def _take_over(
    service: MemoryServices, request: RequestContext, principal: Principal, offer: GrantInfo, given: dict[str, str]
) -> OfferAnswer:
    """Make memories the principal's own, within its quota."""
    keys = (await service.namespaces.get(principal.namespace)).keys
    received = await service.quotas.count(Principal(principal.namespace, offer.from_agent, owners=tuple(given)))
    await service.quotas.take(principal, received.memories, received.chunks)
    answer = await service.backend.write(
        "rm1_accept_transfer",
        [keys.audit, keys.counters, keys.agent(principal.agent)],
        agent=principal.agent,
        id=offer.id,
        proofs=given if service.backend.integrity.signs else None,
        audited_call=request.call,
        audit=request.caller.audit("answer_offer", [offer.id]),
    )
    if answer["status"] == "too_many_owner_ids":
        message = "you would hold what more than 1000 agents left, the limit for one agent"
        raise Conflict(message, hint="let another agent accept it; the offer still waits")
    if answer["status"] != "accepted":
        raise no_offer(offer.id)
    return OfferAnswer(
        offer_id=offer.id, accepted=True, from_agent=offer.from_agent, memories_received=received.memories
    )
