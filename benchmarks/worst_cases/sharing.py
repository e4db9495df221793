"""Worst cases of grants, offers and transfers."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.worst_cases.busy_namespace import (
    AGENTS,
    GRANTS,
    HOUR,
    TOKENS,
    BusyNamespace,
    Call,
    Request,
    agent,
    limit_of,
    worst,
)
from memory_core.records.ids import new_id
from memory_core.records.keys import digest
from memory_core.records.names import SEPARATOR
from memory_core.records.times import to_redis

RESIGNED = limit_of("operations.authority_records", "_AT_ONCE")
IDS = limit_of("sharing.grants", "_MAX_IDS")
OWNER_IDS = 500
"""Owner ids of one agent. Nothing bounds them; the cost grows with them."""
EXPIRED = 100
_FROM, _TO, _OTHER = agent(0), agent(15), agent(16)


def share(team: BusyNamespace, by: str, to: str, kind: str, values: list[str], **other: Any) -> Call:
    """A call of rm1_share with all that the server signs."""
    grant = other.pop("id", None) or new_id()
    owner = team.owners[by]
    tokens = [f"i:{one}" if kind == "i" else f"{kind}:{owner}:{one}" for one in values]
    request: Request = {
        "id": grant, "offer": None, "candidates": [new_id(), new_id()], "from": by, "to": to, "kind": kind,
        "values": values, "shown": values, "selector": digest(SEPARATOR.join([kind, *values])), "permission": "read",
        "seconds": None, "offer_seconds": HOUR, "note": "n" * 1024, "proofs": [],
        "audit": team.audit(by, "share_context_with_agent", values if kind == "i" else []),
    } | other  # fmt: skip
    request["proof"] = team.proof(grant, by, to, tokens, request["permission"])
    named = [team.keys.audit, team.keys.counters, team.keys.agent(by), team.keys.agent(to)]
    return Call(named, request, {"status": "shared"})


@worst("rm1_share", f"{IDS} ids of others, passed on under {GRANTS} grants", "sharing/grants.py, _MAX_IDS")
async def _share_ids(team: BusyNamespace) -> Call:
    await team.client.delete(team.keys.granted(_TO))
    return share(team, _FROM, _TO, "i", team.memories[2000 : 2000 + IDS])


@worst("rm1_share", f"{IDS} labels, to a holder of 4,096 tokens, with an offer", "MOST of 32_grant_limits.lua")
async def _share_labels(team: BusyNamespace) -> Call:
    await team.client.delete(team.keys.granted(agent(22)))
    await team.grant_all(agent(22), GRANTS - IDS // TOKENS - 1)
    return share(team, agent(17), agent(22), "t", [digest(new_id()) for _ in range(IDS)], offer=new_id())


async def _passed_on(team: BusyNamespace, ids: int, label: str = "label") -> tuple[str, str]:
    """A grant to write under which its holder passes on ids to all other agents. Returns it, and its grantor."""
    owner, between, parent = agent(18), agent(19), new_id()
    tokens = [f"i:{new_id()}" for _ in range(ids)]
    selector = digest(SEPARATOR.join(["t", label]))
    entry = team.entry(parent, owner, between, tokens, selector=selector)
    await team.grants({parent: (between, entry)})
    via = {parent: {"tokens": tokens, "at": 1, "ends": float("inf")}}
    children = {new_id(): agent(number) for number in range(AGENTS) if number not in (0, 18, 19)}
    await team.grants({one: (to, team.entry(one, between, to, [], via=via)) for one, to in children.items()})
    return parent, owner


@worst("rm1_share", "again, for reading only, what 997 agents pass on", "AT_ONCE of 30_grants.lua")
async def _share_less(team: BusyNamespace) -> Call:
    label = digest(new_id())
    parent, owner = await _passed_on(team, IDS, label)
    call = share(team, owner, agent(19), "t", [label], id=parent)
    return Call(call.keys, call.request, {"status": "more"})


@worst("rm1_share", "again, for an hour, what 997 agents pass on", "AT_ONCE of 30_grants.lua")
async def _share_shorter(team: BusyNamespace) -> Call:
    label = digest(new_id())
    parent, owner = await _passed_on(team, IDS, label)
    return share(team, owner, agent(19), "t", [label], id=parent, permission="write", seconds=HOUR)


@worst("rm1_shorten_passed_on", f"a slice of 997 grants of {IDS} ids", "AT_ONCE of 30_grants.lua")
async def _shorten(team: BusyNamespace) -> Call:
    label = digest(new_id())
    parent, owner = await _passed_on(team, IDS, label)
    call = share(team, owner, agent(19), "t", [label], id=parent, permission="write", seconds=HOUR)
    (shared,) = await team.all("rm1_share", [call])
    return Call([team.keys.counters], {"id": parent, "cursor": shared["cursor"]})


def _revoke(team: BusyNamespace, grant: str, who: str) -> Call:
    request: Request = {"id": grant, "who": who, "admin": False, "answers": False, "audit": team.audit(who, "revoke")}
    return Call([team.keys.audit, team.keys.counters], request, {"status": "more"})


@worst("rm1_revoke", f"a grant of which 997 agents hold {IDS} ids each", "AT_ONCE of 30_grants.lua")
async def _revoke_all(team: BusyNamespace) -> Call:
    parent, owner = await _passed_on(team, IDS)
    return _revoke(team, parent, owner)


@worst("rm1_expire_grants", f"{EXPIRED} due grants of {IDS} ids each, passed on", "AT_ONCE of 30_grants.lua")
async def _expire(team: BusyNamespace) -> Call:
    over = time.time() - 1
    owner, between, parent = agent(18), agent(19), new_id()
    tokens = [f"i:{new_id()}" for _ in range(IDS)]
    await team.grants({parent: (between, team.entry(parent, owner, between, tokens))})
    via = {parent: {"tokens": tokens, "at": 1, "ends": over * 1e6}}
    ended = {new_id(): agent(number) for number in range(100, 100 + EXPIRED)}
    await team.grants({one: (to, team.entry(one, between, to, [], via=via)) for one, to in ended.items()})
    await team.client.zadd(team.keys.grants_due, dict.fromkeys(ended, to_redis(over)))
    return Call([team.keys.grants_due], {}, {"more": True})


async def _kept(team: BusyNamespace, name: str) -> list[str]:
    owners = [new_id() for _ in range(OWNER_IDS)]
    proofs = SEPARATOR.join(f"{one}={'c' * 60}" for one in owners)
    await team.client.hset(team.keys.agent(name), mapping={"kept": SEPARATOR.join(owners), "kept_proofs": proofs})
    for one in owners:
        await team.client.hset(team.keys.owner(one), "agent", name)
    return owners


async def _offer_kept(team: BusyNamespace, to: str) -> Call:
    name = f"left-{new_id().lower()}"
    owners = await _kept(team, name)
    request = {
        "agent": name, "target": to, "known": owners, "given": dict.fromkeys(owners, "c" * 60), "id": new_id(),
        "to_owner": team.owners[to], "by_owner": owners[-1], "mac": "m" * 60, "offer_seconds": HOUR, "count": 1,
        "audit": team.audit("operator", "offer"),
    }  # fmt: skip
    return Call([team.keys.agent(name)], request, {"status": "offered"})


@worst("rm1_offer_kept", f"{OWNER_IDS} owner ids", "none: any number of owner ids")
async def _offer(team: BusyNamespace) -> Call:
    return await _offer_kept(team, _OTHER)


@worst("rm1_accept_transfer", f"{OWNER_IDS} owner ids", "none: any number of owner ids")
async def _accept(team: BusyNamespace) -> Call:
    name = f"new-{new_id().lower()}"
    await team.register(name)
    offer = await _offer_kept(team, name)
    await team.all("rm1_offer_kept", [offer])
    request = {
        "agent": name, "id": offer.request["id"], "proofs": offer.request["given"], "audit": team.audit(name, "accept"),
    }  # fmt: skip
    return Call([team.keys.audit, team.keys.counters, team.keys.agent(name)], request, {"status": "accepted"})


@worst("rm1_owner", "a new name", "one name")
async def _owner(team: BusyNamespace) -> Call:
    name, owner = f"new-{new_id().lower()}", new_id()
    proof = {"signer": "k" * 16, "code": "c" * 60, "since": ""}
    request = {"agent": name, "candidate": owner, "proof": proof}
    return Call([team.keys.agent(name), team.keys.owner(owner)], request, {"owner": owner})


@worst("rm1_adopt_authority", f"{RESIGNED} grants of {IDS} ids each", "operations/authority_records.py, a page")
async def _adopt_authority(team: BusyNamespace) -> Call:
    keys = team.keys
    named, items = list[str](), list[Request]()
    for number in range(RESIGNED):
        key, grant = keys.granted(agent(200 + number)), new_id()
        await team.client.hset(key, grant, b"w" * 5000)
        named.append(key)
        items.append({"field": grant, "was": b"w" * 5000, "value": b"v" * 8000})
    request = {"items": items, "first": 3, "audit": team.audit("console", "adopt_authority", ["i" * 26] * RESIGNED)}
    return Call([keys.audit, keys.counters, *named], request, {"adopted": RESIGNED})


@worst("rm1_import_agent", f"{OWNER_IDS} owner ids, and {OWNER_IDS} kept", "none: any number of owner ids")
async def _import_agent(team: BusyNamespace) -> Call:
    keys, name = team.keys, f"new-{new_id().lower()}"
    owners, kept = ([new_id() for _ in range(OWNER_IDS)] for _ in range(2))
    proofs = {"codes": dict.fromkeys(owners, "c" * 60), "kept": dict.fromkeys(kept, "c" * 60), "since": ""}
    request = {
        "agent": name, "owner": owners[-1], "owners": owners, "kept": kept, "proofs": proofs,
        "marks": dict.fromkeys([*owners, *kept], "m" * 60), "audit": team.audit("console", "import", [name]),
    }  # fmt: skip
    named = [keys.agent(name), keys.audit, keys.counters, keys.tombstones, *map(keys.owner, [*owners, *kept])]
    return Call(named, request, {"status": "imported"})


@worst("rm1_import_grant", f"{IDS} ids of others, passed on under {GRANTS} grants", "sharing/grants.py, _MAX_IDS")
async def _import_grant(team: BusyNamespace) -> Call:
    keys, to = team.keys, agent(21)
    await team.client.delete(keys.granted(to))
    values = team.memories[2000 : 2000 + IDS]
    by_parent = {grant: [f"i:{one}" for one in ids] for grant, ids in team.held.items() if set(ids) & set(values)}
    now, grant = to_redis(time.time()), new_id()
    request = {
        "id": grant, "from": _FROM, "to": to, "from_owner": team.owners[_FROM], "to_owner": team.owners[to],
        "permission": "read", "kind": "i", "shown": values, "values": values, "selector": digest(grant), "note": "",
        "at": now, "since": now, "ends": "inf", "own": [],
        "via": {one: {"tokens": tokens, "since": now, "ends": "inf"} for one, tokens in by_parent.items()},
        "proof": team.proof(grant, _FROM, to, [f"i:{one}" for one in values], "read"),
        "audit": team.audit("console", "import", [grant]),
    }  # fmt: skip
    return Call([keys.audit, keys.counters], request, {"status": "imported"})
