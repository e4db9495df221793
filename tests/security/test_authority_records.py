"""Authorisation records: those of earlier releases are adopted, and forged or removed ones are named."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio
from support.audit_helpers import flushed_entries
from support.sharing_helpers import readable, refusal, register, share
from support.stack import Agent, Server, Stack, in_own_task

from memory_core.records.codec import pack, unpack
from memory_core.records.keys import Keys, token_key
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_server.access.tokens import issue_token, revoke_token
from memory_server.operations.authority_records import unadopted
from memory_server.operations.doctor import examine
from memory_server.operations.health.report import Finding
from memory_server.operations.quarantine import lift, quarantine
from memory_server.operations.verify_integrity import adopt, verify

CONTENT = "The spare key is under the third flower pot."
SCOPES: frozenset[Any] = frozenset({"read"})


@pytest_asyncio.fixture(loop_scope="session")
async def carol(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """A third agent."""
    async with in_own_task(server.agent("carol", namespace)) as agent:
        yield agent


@pytest_asyncio.fixture(loop_scope="session")
async def team(server: Server, alice: Agent, bob: Agent, carol: Agent, namespace: str) -> dict[str, str]:
    """One authorisation record of every kind; returns ids."""
    for agent, name in ((alice, "alice"), (bob, "bob"), (carol, "carol")):
        await register(agent, name)
    backend = server.service.backend
    memory_id = await alice.store(CONTENT, sensitive=True)
    grant = await share(alice, "bob", memory_ids=[memory_id])
    await alice.call("share_context_with_agent", target_agent="bob", tags=["pots"], bidirectional=True)
    await carol.store("I leave.")
    await quarantine(backend, namespace, "carol", 5.0)
    token, text = await issue_token(backend, agent="alice", namespace=namespace, scopes=SCOPES, seconds=60)
    return {"memory": memory_id, "grant": grant, "token": token.id, "text": text}


async def unsign(client: Client, keys: Keys, ids: dict[str, str]) -> None:
    """Leave the records as the release before wrote them."""
    for name in ("alice", "bob", "carol"):
        await client.hdel(keys.agent(name), "proofs")
    for grant_id, packed in (await client.hgetall(keys.granted("bob"))).items():
        entry = {name: value for name, value in unpack(packed).items() if name not in ("proof", "code")}
        await client.hset(keys.granted("bob"), grant_id, pack(entry))
    for offer in await client.hkeys(keys.offers("bob")):
        await client.hdel(keys.grant(offer.decode()), "mac")
    await client.hset(keys.quarantined, "carol", "5.000000")
    await client.hdel(token_key(ids["token"]), "mac")


async def faults(server: Server, namespace: str) -> list[Finding]:
    """What doctor finds wrong with a namespace."""
    settings = Settings.load(redis_url=server.service.backend.url, master_key=server.service.settings.master_key)
    return [one for one in (await examine(settings)).faults if one.where == namespace]


@pytest.mark.long
async def test_records_of_an_earlier_release_are_refused_until_adopted(
    server: Server, stack: Stack, alice: Agent, bob: Agent, team: dict[str, str], namespace: str
) -> None:
    keys, service = Keys(namespace), server.service
    before = await verify(service.backend, namespace)
    assert (before.healthy, before.authority) == (True, 8)
    await unsign(stack.client, keys, team)
    code, text = await refusal(alice, "retrieve_memory", memory_id=team["memory"])
    command = f"redis-memory integrity adopt --namespace {namespace}"
    assert (code, command in text) == ("tampered", True)
    service.backend.adopted.discard(namespace)
    assert command in (await unadopted(service.backend, namespace) or "")
    assert command in next(one.remedy or "" for one in await faults(server, namespace) if one.id == "authority.records")
    assert await server.runtime.gate.verify(team["text"]) is None
    report = await verify(service.backend, namespace)
    assert {(bad["record"].partition(" ")[0], bad["problem"]) for bad in report.authority_bad} == {
        (kind, "unsigned") for kind in ("owner-id", "grant", "offer", "quarantine", "token")
    }
    adopted = await adopt(service, namespace)
    assert (adopted.healthy, adopted.authority_adopted) == (True, 8)
    assert await readable(alice, [team["memory"]]) == await readable(bob, [team["memory"]]) == [team["memory"]]
    assert len((await bob.call("get_shared_context"))["offers"]) == 1
    assert await server.runtime.gate.verify(team["text"]) is not None
    assert await unadopted(service.backend, namespace) is None
    assert (await adopt(service, namespace)).authority_adopted == 0
    entries = [entry for entry in await flushed_entries(server, stack.client, namespace) if "adopt" in entry["op"]]
    assert [(entry["op"], len(entry["ids"].split())) for entry in entries] == [("adopt_authority", 7)]


async def test_adopt_signs_no_record_with_a_wrong_code(
    server: Server, stack: Stack, bob: Agent, team: dict[str, str], namespace: str
) -> None:
    keys, client = Keys(namespace), stack.client
    owner = await client.hget(keys.agent("alice"), "owner")
    code = (await client.hget(keys.agent("bob"), "proofs")).partition(b"=")[2]
    both = await client.hget(keys.agent("bob"), "owners") + b"\x1f" + owner
    proofs = await client.hget(keys.agent("bob"), "proofs") + b"\x1f" + owner + b"=" + code
    await client.hset(keys.agent("bob"), mapping={"owners": both, "proofs": proofs})
    packed = await client.hget(keys.granted("bob"), team["grant"])
    await client.hset(keys.granted("bob"), team["grant"], pack(unpack(packed) | {"permission": "write"}))
    await client.hset(token_key(team["token"]), "scopes", "admin")
    revoked, _ = await issue_token(server.service.backend, agent="bob", namespace=namespace, scopes=SCOPES, seconds=60)
    await revoke_token(server.service.backend, revoked.id)
    await client.hset(token_key(revoked.id), "revoked", "0")
    report = await adopt(server.service, namespace)
    assert sorted((bad["record"], bad["problem"]) for bad in report.authority_bad) == [
        (f"grant bob {team['grant']}", "altered"),
        (f"owner-id bob {owner.decode()}", "altered"),
        (f"token {team['token']}", "altered"),
        (f"token {revoked.id}", "altered"),
        (f"token {revoked.id}", "in force again after it was revoked"),
    ]
    assert (report.healthy, report.authority_adopted) == (False, 0)
    assert await readable(bob, [team["memory"]]) == []


@pytest.mark.long
async def test_doctor_and_audit_name_a_forged_record(
    server: Server, stack: Stack, bob: Agent, team: dict[str, str], namespace: str
) -> None:
    client, keys, failures = stack.client, Keys(namespace), server.service.backend.integrity.failures
    owner = await client.hget(keys.agent("alice"), "owner")
    both = await client.hget(keys.agent("bob"), "owners") + b"\x1f" + owner
    await client.hset(keys.agent("bob"), "owners", both)
    await bob.call("list_agents")
    await refusal(bob, "retrieve_memory", memory_id=team["grant"])
    assert server.service.backend.integrity.failures == failures + 1
    entries = await flushed_entries(server, client, namespace)
    refused = [entry for entry in entries if entry["op"] == "refuse_authority"]
    assert [(entry["ids"], entry["outcome"]) for entry in refused] == [("owner-id:bob", "tampered")]
    (fault,) = await faults(server, namespace)
    assert fault.id == "authority.records"
    assert f"owner-id bob {owner.decode()} is unsigned" in fault.seen


@pytest.mark.parametrize("attack", ["mark removed", "token revived", "grant revived"])
async def test_verify_names_what_was_removed_or_revived(
    server: Server, stack: Stack, alice: Agent, team: dict[str, str], namespace: str, attack: str
) -> None:
    client, keys, backend = stack.client, Keys(namespace), server.service.backend
    token = await client.hgetall(token_key(team["token"]))
    granted = await client.hgetall(keys.granted("bob"))
    if attack == "mark removed":
        await client.hdel(keys.quarantined, "carol")
        expected = "quarantine carol"
    elif attack == "token revived":
        await revoke_token(backend, team["token"])
        assert (await verify(backend, namespace)).healthy
        await client.hset(token_key(team["token"]), mapping=token)
        expected = f"token {team['token']}"
    else:
        await alice.call("revoke_shared_context", grant_id=team["grant"])
        assert (await verify(backend, namespace)).healthy
        await client.hset(keys.granted("bob"), mapping=granted)
        expected = f"grant bob {team['grant']}"
    report = await verify(backend, namespace)
    assert [bad["record"] for bad in report.authority_bad] == [expected]
    assert not report.healthy


async def test_lifted_quarantine_is_no_finding(server: Server, team: dict[str, str], namespace: str) -> None:
    await lift(server.service.backend, namespace, "carol")
    assert (await verify(server.service.backend, namespace)).healthy
