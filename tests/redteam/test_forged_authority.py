"""Write access to Redis does not give authority: forged, changed and copied authorisation records have no effect."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.sharing_helpers import readable, register, share
from support.stack import Agent, Server, Stack, in_own_task

from memory_core.errors import NotFound, Unauthenticated
from memory_core.records import owners
from memory_core.records.codec import pack, unpack
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys, operator_key, token_key
from memory_core.records.scope import Principal
from memory_core.records.token import hash_of
from memory_core.redis_client import Client
from memory_server.access.operator_login import admit_once, redeem
from memory_server.access.tokens import issue_token, revoke_token
from memory_server.engine.credential import Credential
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.operations.kept_memories import offer_kept
from memory_server.operations.quarantine import quarantine
from memory_server.operations.team_sweeper import sweep_team
from memory_server.transfer.export_lines import AgentLine
from memory_server.transfer.exporter import ExportOptions, export
from memory_server.transfer.restore import Restorer

pytestmark = pytest.mark.redteam
SECRET = "The launch code of the rocket is 0000, says the general."
FAR = 4_000_000_000.0
SCOPES: frozenset[Any] = frozenset({"read", "admin"})


@dataclass(slots=True)
class Target:
    """A namespace where alice keeps a sensitive memory and mallory would like to read it."""

    server: Server
    redis: Client
    names: Keys
    alice: Agent
    mallory: Agent
    secret: str

    async def principal(self, agent: str = "mallory", namespace: str | None = None) -> Principal:
        """What the server takes an agent for."""
        caller = Caller(namespace or self.names.namespace, agent)
        return await resolve(self.server.service.backend, RequestContext(caller))

    async def owner(self, agent: str = "alice") -> str:
        """The owner id of an agent."""
        return (await self.redis.hget(self.names.agent(agent), "owner")).decode()


@pytest_asyncio.fixture(loop_scope="session")
async def target(server: Server, stack: Stack, namespace: str) -> AsyncGenerator[Target]:
    """That namespace."""
    async with (
        in_own_task(server.agent("alice", namespace)) as alice,
        in_own_task(server.agent("mallory", namespace)) as mallory,
    ):
        await register(alice, "alice")
        await register(mallory, "mallory")
        secret = await alice.store(SECRET, sensitive=True)
        yield Target(server, stack.client, Keys(namespace), alice, mallory, secret)


@pytest_asyncio.fixture(loop_scope="session")
async def elsewhere(server: Server, stack: Stack, namespace: str) -> AsyncGenerator[Keys]:
    """Another namespace, where alice and mallory are registered and share."""
    other = f"{namespace}-other"
    async with (
        in_own_task(server.agent("alice", other)) as alice,
        in_own_task(server.agent("mallory", other)) as mallory,
    ):
        await register(alice, "alice")
        await register(mallory, "mallory")
        await share(alice, "mallory", memory_types=["document"])
        yield Keys(other)


def grant_of(tokens_given: list[str], owner: str, by: str = "alice") -> bytes:
    """A grant in force, as the Functions of earlier releases wrote it."""
    entry = {"owner": owner, "by": by, "by_owner": "x", "permission": "write", "selector": "x", "at": 1.0}
    return pack(entry | {"ends": math.inf, "own": tokens_given, "via": {}})


async def copy_hash(redis: Client, source: str, target: str) -> None:
    """Replace a hash by a copy of another."""
    fields = await redis.hgetall(source)
    await redis.delete(target)
    await redis.hset(target, mapping=fields)


# Owner ids


async def forge_owner(target: Target) -> None:
    owner = await target.owner()
    await target.redis.hset(target.names.agent("mallory"), mapping={"owner": owner, "owners": owner})


async def add_owner(target: Target) -> None:
    both = f"{await target.owner('mallory')}\x1f{await target.owner()}"
    await target.redis.hset(target.names.agent("mallory"), "owners", both)


async def copy_owner(target: Target) -> None:
    await copy_hash(target.redis, target.names.agent("alice"), target.names.agent("mallory"))


@pytest.mark.parametrize("attack", [forge_owner, add_owner, copy_owner])
async def test_forged_owner_id_opens_no_sensitive_memory(
    target: Target, attack: Callable[[Target], Awaitable[None]]
) -> None:
    await attack(target)
    assert await readable(target.mallory, [target.secret]) == []
    assert await readable(target.alice, [target.secret]) == [target.secret]


async def test_owner_id_of_another_namespace_is_not_accepted(target: Target, elsewhere: Keys) -> None:
    await copy_hash(target.redis, elsewhere.agent("mallory"), target.names.agent("mallory"))
    foreign = await target.owner("mallory")
    assert (await target.principal("mallory", elsewhere.namespace)).owners == (foreign,)
    assert (await readable(target.mallory, [target.secret])) == []
    assert (await target.mallory.raw("store_memory", content="Mine.")).is_error


@pytest.mark.parametrize("memories", ["transfer", "delete"])
async def test_forged_owner_id_is_neither_transferred_nor_deleted(target: Target, memories: str) -> None:
    await add_owner(target)
    async with in_own_task(target.server.agent("bob", target.names.namespace)) as bob:
        await register(bob, "bob")
        own = await target.mallory.store("This is really mine.")
        receiver = {"transfer_to": "bob"} if memories == "transfer" else {}
        answer = await target.mallory.call("unregister_agent", memories=memories, **receiver)
        if memories == "transfer":
            await bob.call("answer_offer", offer_id=answer["offer_id"])
        await sweep_team(target.server.service, target.names.namespace)
        assert await readable(bob, [target.secret]) == []
        assert await readable(bob, [own]) == ([own] if memories == "transfer" else [])
    assert await readable(target.alice, [target.secret]) == [target.secret]


async def test_forged_owner_ids_and_grants_are_not_exported(target: Target, tmp_path: Path) -> None:
    """An import elsewhere would sign them."""
    await add_owner(target)
    await forge_grant(target)
    file = tmp_path / "export.jsonl"
    await export(target.server.service, target.names.namespace, file, ExportOptions())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    exported = {line["name"]: line["owners"] for line in lines if line["kind"] == "agent"}
    assert exported["mallory"] == [await target.owner("mallory")]
    assert [line for line in lines if line["kind"] == "grant"] == []


async def drop_since(target: Target) -> None:
    await target.redis.hdel(target.names.agent("bob"), "since")


async def change_since(target: Target) -> None:
    await target.redis.hset(target.names.agent("bob"), "since", "1.000000")


async def copy_since(target: Target) -> None:
    row = await target.redis.hmget(target.names.agent("mallory"), ["owner", "owners", "proofs"])
    await target.redis.delete(target.names.agent("bob"))
    await target.redis.hset(
        target.names.agent("bob"), mapping=dict(zip(("owner", "owners", "proofs"), row, strict=True))
    )


@pytest.mark.parametrize("attack", [drop_since, change_since, copy_since])
async def test_changed_start_of_a_name_shows_no_earlier_task(
    target: Target, bob: Agent, attack: Callable[[Target], Awaitable[None]]
) -> None:
    task = (await bob.call("distribute_task", description="Dig out the chest."))["task_id"]
    await bob.call("unregister_agent")
    await register(bob, "bob")
    assert (await bob.raw("get_task_status", task_id=task)).is_error
    await attack(target)
    answers = [await bob.raw("get_task_status", task_id=task), await bob.raw("wait_for_events", timeout_seconds=0)]
    assert [answer.is_error for answer in answers] == [True, True]


# Kept owner ids, and offers


async def leave(target: Target, agent: Agent, **how: Any) -> tuple[str, dict[str, Any]]:
    """Let an agent leave; return its owner id and the answer."""
    owner = await target.owner("alice" if agent is target.alice else "bob")
    return owner, await agent.call("unregister_agent", **how)


async def offer_to_mallory(target: Target, name: str) -> str | None:
    """Offer what a name kept to Mallory, as the operator; None if nothing is kept."""
    caller = Caller(target.names.namespace, "operator", admin=True)
    try:
        answer = await offer_kept(target.server.service, RequestContext(caller), name, "mallory")
    except NotFound:
        return None
    return answer.offer_id


@pytest_asyncio.fixture(loop_scope="session")
async def bob(target: Target) -> AsyncGenerator[Agent]:
    """A third agent, whose memories are worth nothing."""
    async with in_own_task(target.server.agent("bob", target.names.namespace)) as agent:
        await register(agent, "bob")
        await agent.store("Nothing.")
        yield agent


@pytest.mark.parametrize("attack", ["forged", "changed", "copied"])
async def test_forged_kept_owner_id_is_not_offered(target: Target, bob: Agent, attack: str) -> None:
    names, redis, alices = target.names, target.redis, await target.owner()
    owner, _ = await leave(target, bob)
    codes = (await redis.hget(names.agent("bob"), "kept_proofs")).decode()
    if attack == "forged":
        await redis.hset(names.agent("bob"), "kept", alices)
    elif attack == "changed":
        await redis.hset(names.agent("bob"), mapping={"kept": alices, "kept_proofs": codes.replace(owner, alices)})
    else:
        proofs = await redis.hget(names.agent("alice"), "proofs")
        await redis.hset(names.agent("bob"), mapping={"kept": alices, "kept_proofs": proofs})
    assert await offer_to_mallory(target, "bob") is None
    assert await readable(target.alice, [target.secret]) == [target.secret]


async def test_kept_owner_id_of_another_name_or_namespace_is_not_offered(
    target: Target, bob: Agent, elsewhere: Keys
) -> None:
    kept = ["kept", "kept_proofs"]
    async with in_own_task(target.server.agent("bob", elsewhere.namespace)) as there:
        await register(there, "bob")
        await there.store("Nothing.")
        await there.call("unregister_agent")
    await leave(target, bob)
    genuine = await target.redis.hmget(target.names.agent("bob"), kept)
    foreign = await target.redis.hmget(elsewhere.agent("bob"), kept)
    await target.redis.hset(target.names.agent("carol"), mapping=dict(zip(kept, genuine, strict=True)))
    assert await offer_to_mallory(target, "carol") is None
    await target.redis.hset(target.names.agent("bob"), mapping=dict(zip(kept, foreign, strict=True)))
    assert await offer_to_mallory(target, "bob") is None
    await target.redis.hset(target.names.agent("bob"), mapping=dict(zip(kept, genuine, strict=True)))
    assert await offer_to_mallory(target, "bob") is not None


async def move_offer(target: Target, offer: str, change: dict[str, Any], record: dict[str, Any]) -> None:
    """Write an offer under an id for Mallory, with changes to its entry and its record."""
    packed = await target.redis.hget(target.names.offers("bob"), offer)
    entry = unpack(packed) | {"owner": await target.owner("mallory")} | change
    await target.redis.hset(target.names.offers("mallory"), offer, pack(entry))
    await target.redis.hset(target.names.grant(offer), mapping=record)


async def forge_transfer(target: Target, offer: str) -> None:
    await move_offer(target, offer, {"proofs": {}}, {"to": "mallory", "to_owner": await target.owner("mallory")})
    await target.redis.hdel(target.names.grant(offer), "mac")


async def redirect_transfer(target: Target, offer: str) -> None:
    await move_offer(target, offer, {}, {"to": "mallory", "to_owner": await target.owner("mallory")})


async def lend_record(target: Target, offer: str) -> None:
    """A genuine offer to Mallory, with the entry of the other one."""
    async with in_own_task(target.server.agent("carol", target.names.namespace)) as carol:
        await register(carol, "carol")
        answer = await carol.call("unregister_agent", memories="transfer", transfer_to="mallory")
    packed = await target.redis.hget(target.names.offers("bob"), offer)
    own = unpack(await target.redis.hget(target.names.offers("mallory"), answer["offer_id"]))
    entry = own | {name: value for name, value in unpack(packed).items() if name in ("own", "by", "proofs")}
    await target.redis.hset(target.names.offers("mallory"), answer["offer_id"], pack(entry))
    await target.redis.hset(target.names.grant(offer), "lent", answer["offer_id"])


@pytest.mark.parametrize("attack", [forge_transfer, redirect_transfer, lend_record])
async def test_forged_transfer_gives_nothing(
    target: Target, bob: Agent, attack: Callable[[Target, str], Awaitable[None]]
) -> None:
    """Alice leaves and offers her memories to Bob; Mallory takes the offer."""
    owner, answer = await leave(target, target.alice, memories="transfer", transfer_to="bob")
    offer = answer["offer_id"]
    saved = await target.redis.hgetall(target.names.grant(offer))
    await attack(target, offer)
    lent = await target.redis.hget(target.names.grant(offer), "lent")
    result = await target.mallory.raw("answer_offer", offer_id=lent.decode() if lent else offer)
    assert result.is_error
    assert await readable(target.mallory, [target.secret]) == []
    assert (await target.redis.hget(target.names.agent("alice"), "kept")).decode() == owner
    await target.redis.delete(target.names.grant(offer))
    await target.redis.hset(target.names.grant(offer), mapping=saved)
    assert (await bob.call("answer_offer", offer_id=offer))["memories_received"] == 1
    assert await readable(bob, [target.secret]) == [target.secret]


async def test_transfer_widened_by_a_kept_owner_id_gives_only_what_was_offered(target: Target, bob: Agent) -> None:
    """Alice keeps her memories; Bob offers his, and somebody adds hers to his offer."""
    alices, _ = await leave(target, target.alice)
    bobs, answer = await leave(target, bob, memories="transfer", transfer_to="mallory")
    names, offer = target.names, answer["offer_id"]
    entry = unpack(await target.redis.hget(names.offers("mallory"), offer))
    codes = entry["proofs"] | {alices: entry["proofs"][bobs]}
    widened = entry | {"own": [*entry["own"], f"o:{alices}"], "proofs": codes}
    await target.redis.hset(names.offers("mallory"), offer, pack(widened))
    await target.redis.hset(names.agent("bob"), "kept", f"{bobs}\x1f{alices}")
    await target.mallory.call("answer_offer", offer_id=offer)
    assert (await target.principal("mallory")).owners == (await target.owner("mallory"), bobs)
    assert await readable(target.mallory, [target.secret]) == []


async def test_offer_copied_to_another_id_or_namespace_is_not_answered(target: Target, elsewhere: Keys) -> None:
    names, redis = target.names, target.redis
    asked: dict[str, Any] = {"target_agent": "mallory", "tags": ["a"], "bidirectional": True}
    offer = (await target.alice.call("share_context_with_agent", **asked))["offer_id"]
    async with in_own_task(target.server.agent("alice", elsewhere.namespace)) as there:
        foreign = (await there.call("share_context_with_agent", **asked))["offer_id"]
    packed, copy = await redis.hget(names.offers("mallory"), offer), "0" * 26
    await copy_hash(redis, names.grant(offer), names.grant(copy))
    await copy_hash(redis, elsewhere.grant(foreign), names.grant(foreign))
    for forged in (copy, foreign):
        await redis.hset(names.offers("mallory"), forged, packed)
        if forged == foreign:
            parties = {"from_owner": await target.owner(), "to_owner": await target.owner("mallory")}
            await redis.hset(names.grant(forged), mapping=parties)
        assert (await target.mallory.raw("answer_offer", offer_id=forged)).is_error
    assert [one["id"] for one in (await target.mallory.call("get_shared_context"))["offers"]] == [offer]
    await redis.hset(names.grant(offer), "until", "inf")
    assert (await target.mallory.raw("answer_offer", offer_id=offer)).is_error


# Grants


async def forge_grant(target: Target) -> None:
    packed = grant_of([f"i:{target.secret}"], await target.owner("mallory"))
    await target.redis.hset(target.names.granted("mallory"), "0" * 26, packed)


async def widen_grant(target: Target) -> None:
    grant = await share(target.alice, "mallory", memory_types=["document"])
    entry = unpack(await target.redis.hget(target.names.granted("mallory"), grant))
    widened = pack(entry | {"own": [f"i:{target.secret}"]})
    await target.redis.hset(target.names.granted("mallory"), grant, widened)


async def copy_grant(target: Target) -> None:
    async with in_own_task(target.server.agent("bob", target.names.namespace)) as bob:
        await register(bob, "bob")
    grant = await share(target.alice, "bob", memory_ids=[target.secret])
    entry = unpack(await target.redis.hget(target.names.granted("bob"), grant))
    moved = pack(entry | {"owner": await target.owner("mallory")})
    await target.redis.hset(target.names.granted("mallory"), grant, moved)


async def rename_grant(target: Target) -> None:
    grant = await share(target.alice, "mallory", memory_ids=[target.secret])
    packed = await target.redis.hget(target.names.granted("mallory"), grant)
    await target.alice.call("revoke_shared_context", grant_id=grant)
    await target.redis.hset(target.names.granted("mallory"), "0" * 26, packed)


@pytest.mark.parametrize("attack", [forge_grant, widen_grant, copy_grant, rename_grant])
async def test_forged_grant_opens_no_sensitive_memory(
    target: Target, attack: Callable[[Target], Awaitable[None]]
) -> None:
    await attack(target)
    assert await readable(target.mallory, [target.secret]) == []


@pytest.mark.parametrize("change", [{"permission": "write"}, {"by": "bob"}, {"ends": math.inf}])
async def test_changed_grant_has_no_effect(target: Target, change: dict[str, Any]) -> None:
    grant = await share(target.alice, "mallory", memory_types=["document"], expires_in_seconds=60)
    entry = unpack(await target.redis.hget(target.names.granted("mallory"), grant))
    assert [one.id for one in (await target.principal()).grants] == [grant]
    await target.redis.hset(target.names.granted("mallory"), grant, pack(entry | change))
    assert (await target.principal()).grants == ()


async def test_grant_of_another_namespace_has_no_effect(target: Target, elsewhere: Keys) -> None:
    ((grant, packed),) = (await target.redis.hgetall(elsewhere.granted("mallory"))).items()
    copied = pack(unpack(packed) | {"owner": await target.owner("mallory")})
    await target.redis.hset(target.names.granted("mallory"), grant, copied)
    assert len((await target.principal("mallory", elsewhere.namespace)).grants) == 1
    assert (await target.principal()).grants == ()


async def test_forged_or_changed_offer_is_not_listed(target: Target) -> None:
    async def offers() -> list[str]:
        return [one["id"] for one in (await target.mallory.call("get_shared_context"))["offers"]]

    made = await target.alice.call("share_context_with_agent", target_agent="mallory", tags=["a"], bidirectional=True)
    offer = made["offer_id"]
    assert await offers() == [offer]
    await target.redis.hset(target.names.grant(offer), "from", "bob")
    assert await offers() == []
    await target.redis.hset(target.names.grant(offer), mapping={"from": "alice", "values": pack(["b"])})
    assert await offers() == []
    await target.redis.hset(target.names.grant(offer), mapping={"values": pack(["a"]), "mac": ""})
    assert await offers() == []


# Tokens


async def issued(target: Target, agent: str = "mallory", namespace: str | None = None) -> tuple[str, str]:
    """Issue a token; return its id and its text."""
    backend = target.server.service.backend
    token, text = await issue_token(
        backend, agent=agent, namespace=namespace or target.names.namespace, scopes=SCOPES, seconds=60
    )
    return token.id, text


async def test_forged_token_is_not_accepted(target: Target) -> None:
    _, text = await issued(target)
    token_id, secret = new_id(), "x" * 43
    fields = {"agent": "alice", "namespace": target.names.namespace, "scopes": "admin read", "revoked": "0"}
    times = {"created_at": "1.0", "expires_at": str(FAR)}
    await target.redis.hset(token_key(token_id), mapping={**fields, **times, "hash": hash_of(secret)})
    await target.redis.expire(token_key(token_id), 60)
    assert await target.server.runtime.gate.verify(f"rm_{token_id}_{secret}") is None
    assert await target.server.runtime.gate.verify(text) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"agent": "alice"},
        {"namespace": "team"},
        {"scopes": "tasks"},
        {"expires_at": str(FAR)},
        {"hash": hash_of("x" * 43)},
    ],
)
async def test_changed_token_is_not_accepted(target: Target, change: dict[str, str]) -> None:
    token_id, text = await issued(target)
    verify = target.server.runtime.gate.verify
    assert await verify(text) is not None
    await target.redis.hset(token_key(token_id), mapping=change)
    if "hash" in change:
        text = f"rm_{token_id}_{'x' * 43}"
    assert await verify(text) is None


async def test_token_copied_to_another_id_or_namespace_is_not_accepted(target: Target, elsewhere: Keys) -> None:
    verify = target.server.runtime.gate.verify
    mine, text = await issued(target)
    admins, _ = await issued(target, "alice", elsewhere.namespace)
    secret_hash = await target.redis.hget(token_key(mine), "hash")
    for source in (mine, admins):
        forged = text.replace(mine, "0" * 26)
        await copy_hash(target.redis, token_key(source), token_key("0" * 26))
        await target.redis.hset(token_key("0" * 26), "hash", secret_hash)
        await target.redis.expire(token_key("0" * 26), 60)
        assert await verify(forged) is None
    assert await verify(text) is not None


async def test_revoked_token_is_not_revived(target: Target) -> None:
    token_id, text = await issued(target)
    await revoke_token(target.server.service.backend, token_id)
    await target.redis.hset(token_key(token_id), "revoked", "0")
    assert await target.server.runtime.gate.verify(text) is None


# Keys of the operator's dashboard


@pytest.mark.parametrize("attack", ["forged", "other namespace", "other key", "later end"])
async def test_forged_operator_key_opens_nothing(target: Target, attack: str) -> None:
    backend, namespace = target.server.service.backend, target.names.namespace
    key = await admit_once(backend, f"{namespace}-own", 60)
    key_id, _, secret = key.partition("_")
    stored = (await target.redis.get(operator_key(key_id))).decode()
    if attack == "forged":
        stored = f"{hash_of(secret)} {namespace} {FAR}"
    elif attack == "other namespace":
        stored = stored.replace(f"{namespace}-own", namespace)
    elif attack == "later end":
        stored = " ".join([*stored.split()[:2], str(FAR), *stored.split()[3:]])
    else:
        key_id = "0" * 26
    await target.redis.set(operator_key(key_id), stored, ex=60)
    assert await redeem(backend, f"{key_id}_{secret}") is None


# Quarantine marks and tombstones


async def test_changed_quarantine_mark_still_hides_everything(target: Target, elsewhere: Keys) -> None:
    backend, marks = target.server.service.backend, target.names.quarantined
    for namespace, since in ((target.names.namespace, 5.0), (elsewhere.namespace, FAR)):
        await quarantine(backend, namespace, "mallory", since)
    await quarantine(backend, target.names.namespace, "bob", FAR)
    assert dict((await target.principal("alice")).quarantined) == {"mallory": 5.0, "bob": FAR}
    for forged in (
        str(FAR).encode(),
        await target.redis.hget(marks, "bob"),
        await target.redis.hget(elsewhere.quarantined, "mallory"),
    ):
        await target.redis.hset(marks, "mallory", forged)
        assert dict((await target.principal("alice")).quarantined)["mallory"] <= 5.0


async def test_forged_tombstone_destroys_nothing(target: Target) -> None:
    await target.redis.sadd(target.names.tombstones, await target.owner())
    await sweep_team(target.server.service, target.names.namespace)
    await target.redis.srem(target.names.tombstones, await target.owner())
    assert await readable(target.alice, [target.secret]) == [target.secret]


async def test_tombstone_copied_from_another_owner_destroys_nothing(target: Target, elsewhere: Keys) -> None:
    names, owner = target.names, await target.owner()
    async with in_own_task(target.server.agent("bob", names.namespace)) as bob:
        await register(bob, "bob")
        bobs = await target.owner("bob")
        await bob.call("unregister_agent", memories="delete")
    await copy_hash(target.redis, names.owner(bobs), names.owner(owner))
    await target.redis.sadd(names.tombstones, owner)
    await sweep_team(target.server.service, names.namespace)
    await target.redis.srem(names.tombstones, owner)
    assert await readable(target.alice, [target.secret]) == [target.secret]


async def test_tombstone_of_another_namespace_destroys_nothing(target: Target, elsewhere: Keys) -> None:
    names, owner = target.names, await target.owner()
    integrity = target.server.service.backend.integrity
    code = (owners.tombstones(integrity, elsewhere.namespace, [owner]) or {})[owner]
    await target.redis.hset(names.owner(owner), "deleted", code)
    await target.redis.sadd(names.tombstones, owner)
    await sweep_team(target.server.service, names.namespace)
    await target.redis.srem(names.tombstones, owner)
    assert await readable(target.alice, [target.secret]) == [target.secret]


async def test_forged_mark_hides_more_and_never_less(target: Target, elsewhere: Keys) -> None:
    """A mark restricts, so a forged one can only hide."""
    shown = await target.alice.store("The tide table.", visibility="public")
    assert await readable(target.mallory, [shown]) == [shown]
    await quarantine(target.server.service.backend, elsewhere.namespace, "alice", FAR)
    for forged in (str(FAR).encode(), await target.redis.hget(elsewhere.quarantined, "alice")):
        await target.redis.hset(target.names.quarantined, "alice", forged)
        assert await readable(target.mallory, [shown]) == []


# The check during a call, and files that no key signed


async def test_token_changed_during_a_call_ends_the_call(target: Target) -> None:
    token_id, text = await issued(target)
    verify = target.server.runtime.gate.verify
    access = await verify(text)
    assert access is not None
    credential = Credential(access, lambda: verify(text), 0.0)
    await credential.check()
    await target.redis.hset(token_key(token_id), "expires_at", str(FAR))
    with pytest.raises(Unauthenticated):
        await credential.check()


@pytest.mark.parametrize("source", ["digest", "another owner", "another namespace"])
async def test_forged_mark_of_a_file_plants_no_memory(target: Target, elsewhere: Keys, source: str) -> None:
    """A file that no key signed may add only to owner ids that came with it."""
    owner, names, file = await target.owner(), target.names, "f" * 32
    integrity = target.server.service.backend.integrity
    mark = {
        "digest": file,
        "another owner": owners.file_mark(integrity, names.namespace, await target.owner("mallory"), file),
        "another namespace": owners.file_mark(integrity, elsewhere.namespace, owner, file),
    }[source]
    await target.redis.hset(names.owner(owner), "file", mark)
    counts: Counter[str] = Counter()
    restorer = Restorer(target.server.service.backend, names.namespace, file, counts)
    await restorer.restore(AgentLine(name="alice", owner=owner, owners=[owner]))
    assert counts == {"agent other_agents": 1}
    genuine = owners.file_mark(integrity, names.namespace, owner, file)
    await target.redis.hset(names.owner(owner), "file", genuine)
    await restorer.restore(AgentLine(name="alice", owner=owner, owners=[owner]))
    assert counts == {"agent other_agents": 1, "agent kept": 1}
