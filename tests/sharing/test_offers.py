"""answer_offer: two-way grants and transfers are accepted or declined, once, by the agent they are for."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio
from support.sharing_helpers import LABELS, SECRET, readable, refusal, register, share
from support.stack import Agent, Server, Stack, text_of

from memory_core.errors import Forbidden
from memory_core.records.keys import Keys
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.operations import kept_memories
from memory_server.sharing.grants import remove_expired

ANSWER = "answer_offer"


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def registered(alice: Agent, bob: Agent) -> None:
    """Both agents are registered."""
    await register(alice, "alice")
    await register(bob, "bob")


async def offer_back(agent: Agent, target: str = "bob", **what: Any) -> dict[str, Any]:
    """Share both ways; return the answer."""
    selected = what if "tags" in what or "memory_types" in what else {"context": "island", **what}
    return await agent.call("share_context_with_agent", target_agent=target, bidirectional=True, **selected)


async def transfer(agent: Agent, target: str = "bob") -> str:
    """Leave and offer all memories; return the offer's id."""
    return (await agent.call("unregister_agent", memories="transfer", transfer_to=target))["offer_id"]


async def grants_of(agent: Agent, which: str) -> list[dict[str, Any]]:
    return (await agent.call("get_shared_context"))[which]


async def test_accepting_a_two_way_offer_shares_the_same_back(alice: Agent, bob: Agent) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"context": "island"}, {"context": "island"}),
        ({"tags": ["gold", "map"]}, {"tags": ["map"]}),
        ({"memory_types": ["document"]}, {"memory_type": "document"}),
    ]
    for what, labels in cases:
        his = await bob.store("A map of the coast.", **labels)
        offer = (await offer_back(alice, permission="write", **what))["offer_id"]
        answer = await bob.call(ANSWER, offer_id=offer)
        assert (answer["accepted"], answer["from_agent"]) == (True, "alice")
        assert await readable(alice, [his]) == [his]
        (given,) = [grant for grant in await grants_of(bob, "granted_by_me") if grant["id"] == answer["grant_id"]]
        assert given["permission"] == "write"
        assert [waiting["id"] for waiting in await grants_of(bob, "offers")] == []
        assert (await refusal(bob, ANSWER, offer_id=offer))[0] == "not_found"


async def test_accepted_grant_ends_with_the_grant_it_answers(alice: Agent, bob: Agent) -> None:
    offer = await offer_back(alice, expires_in_seconds=3600)
    answer = await bob.call(ANSWER, offer_id=offer["offer_id"])
    (given,) = await grants_of(alice, "granted_by_me")
    assert answer["expires_at"] == given["expires_at"] is not None


async def test_offer_is_void_once_the_grant_it_answers_has_ended(alice: Agent, bob: Agent) -> None:
    his = await bob.store("A map of the coast.", context="island")
    offer = await offer_back(alice)
    await alice.call("revoke_shared_context", grant_id=offer["grant_id"])
    assert (await refusal(bob, ANSWER, offer_id=offer["offer_id"]))[0] == "not_found"
    assert await readable(alice, [his]) == []


async def test_declined_offer_gives_nothing_and_cannot_be_accepted(alice: Agent, bob: Agent) -> None:
    his = await bob.store("A map of the coast.", context="island")
    offer = (await offer_back(alice))["offer_id"]
    cursor = (await alice.call("wait_for_events", timeout_seconds=0))["cursor"]
    for _ in range(2):
        assert not (await bob.call(ANSWER, offer_id=offer, accept=False))["accepted"]
    assert (await refusal(bob, ANSWER, offer_id=offer))[0] == "not_found"
    assert await readable(alice, [his]) == []
    events = (await alice.call("wait_for_events", cursor=cursor, timeout_seconds=0))["events"]
    assert [(event["op"], event["id"], event["by"]) for event in events] == [("declined", offer, "bob")]
    assert len(await grants_of(bob, "granted_to_me")) == 1


async def test_accepted_offer_cannot_be_declined_afterwards(alice: Agent, bob: Agent) -> None:
    offer = (await offer_back(alice))["offer_id"]
    await bob.call(ANSWER, offer_id=offer)
    assert (await refusal(bob, ANSWER, offer_id=offer, accept=False))[0] == "not_found"


async def test_grants_are_no_offers(alice: Agent, bob: Agent) -> None:
    secret = await alice.store(SECRET, **LABELS)
    grant = await share(alice, "bob", context="island")
    for accept in (True, False):
        assert (await refusal(bob, ANSWER, offer_id=grant, accept=accept))[0] == "not_found"
    assert await readable(bob, [secret]) == [secret]


async def test_sharing_the_same_back_still_accepts_an_offer(alice: Agent, bob: Agent) -> None:
    offer = (await offer_back(alice))["offer_id"]
    answer = await bob.call("share_context_with_agent", target_agent="alice", context="island")
    assert answer["accepted_offer"] == offer


async def test_receiver_hears_of_a_transfer_and_its_text_says_how_to_answer(alice: Agent, bob: Agent) -> None:
    await alice.store(SECRET, **LABELS)
    cursor = (await bob.call("wait_for_events", timeout_seconds=0))["cursor"]
    offer = await transfer(alice)
    events = (await bob.call("wait_for_events", cursor=cursor, kinds=["grant"], timeout_seconds=0))["events"]
    assert [(event["op"], event["id"], event["by"]) for event in events] == [("offered", offer, "alice")]
    (waiting,) = await grants_of(bob, "offers")
    assert (waiting["from_agent"], waiting["transfer"], waiting["memories"]) == ("alice", True, 1)
    assert time.time() + 29 * 86_400 < _seconds(waiting["expires_at"]) < time.time() + 31 * 86_400
    assert "answer_offer" in text_of(await bob.raw("get_shared_context"))


async def test_declined_or_expired_transfer_is_kept(
    alice: Agent, bob: Agent, server: Server, stack: Stack, namespace: str
) -> None:
    keys, secret = Keys(namespace), await alice.store(SECRET, **LABELS)
    offer = await transfer(alice)
    await bob.call("revoke_shared_context", grant_id=offer)
    assert await readable(bob, [secret]) == []
    kept = await stack.client.hget(keys.agent("alice"), "kept")
    assert kept == await stack.client.hget(keys.memory(secret), "owner")
    again = await _offer_kept(server, namespace, "alice", "bob")
    await stack.client.zadd(keys.grants_due, {again: 1})
    await remove_expired((await server.runtime.service()).backend, namespace, 10)
    assert await stack.client.hget(keys.grant(again), "state") == b"expired"
    assert (await refusal(bob, ANSWER, offer_id=again))[0] == "not_found"
    assert await stack.client.hget(keys.agent("alice"), "kept") == kept


async def test_overdue_transfer_cannot_be_accepted_before_the_sweep(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    await alice.store(SECRET)
    offer = await transfer(alice)
    await stack.client.hset(Keys(namespace).grant(offer), "until", "1.000000")
    assert (await refusal(bob, ANSWER, offer_id=offer))[0] == "not_found"


async def test_one_transfer_of_a_name_waits_for_a_receiver(alice: Agent, bob: Agent) -> None:
    offer = await transfer(alice)
    await register(alice, "alice")
    code, text = await refusal(alice, "unregister_agent", memories="transfer", transfer_to="bob")
    assert (code, "waits" in text) == ("conflict", True)
    await bob.call(ANSWER, offer_id=offer, accept=False)
    assert await transfer(alice) != offer


async def test_only_an_operator_can_offer_what_was_kept(
    alice: Agent, bob: Agent, server: Server, namespace: str
) -> None:
    secret = await alice.store(SECRET, **LABELS)
    await alice.call("unregister_agent")
    await register(alice, "alice")
    service = await server.runtime.service()
    with pytest.raises(Forbidden):
        await kept_memories.offer_kept(service, RequestContext(Caller(namespace, "alice")), "alice", "alice")
    offer = await _offer_kept(server, namespace, "alice", "alice")
    assert await readable(alice, [secret]) == []
    assert (await alice.call(ANSWER, offer_id=offer))["memories_received"] == 1
    assert await readable(alice, [secret]) == [secret]
    assert (await alice.call("get_agent_memories"))["total"] == 1
    await share(alice, "bob", context="island")
    assert await readable(bob, [secret]) == [secret]


async def test_two_offers_of_the_same_memories_give_them_to_one(
    alice: Agent, bob: Agent, server: Server, namespace: str
) -> None:
    async with server.agent("carol", namespace) as carol:
        await register(carol, "carol")
        secret = await alice.store(SECRET)
        first = await transfer(alice)
        second = await _offer_kept(server, namespace, "alice", "carol")
        await carol.call(ANSWER, offer_id=second)
        assert (await refusal(bob, ANSWER, offer_id=first))[0] == "not_found"
        assert (await readable(carol, [secret]), await readable(bob, [secret])) == ([secret], [])


async def test_growth_of_a_grant_is_counted_and_a_renewal_resets_it(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    page = await alice.store("A page.", context="island")
    grant = await share(alice, "bob", context="island", permission="write")
    long = "".join(f"Sentence {number} tells of the quiet harbour and its many boats. " for number in range(60))
    await bob.call("update_memory", memory_id=page, content=long)
    (given,) = await grants_of(alice, "granted_by_me")
    pieces = int(await stack.client.hget(Keys(namespace).memory(page), "pieces") or 1)
    assert pieces > 1
    assert given["grown"] == pieces - 1
    await bob.call("update_memory", memory_id=page, content="Short again.")
    assert (await grants_of(alice, "granted_by_me"))[0]["grown"] == 0
    await bob.call("update_memory", memory_id=page, content=long)
    assert await share(alice, "bob", context="island", permission="write") == grant
    assert (await grants_of(alice, "granted_by_me"))[0]["grown"] == 0


async def test_owners_own_growth_counts_against_no_grant(alice: Agent, bob: Agent) -> None:
    page = await alice.store("A page.", context="island")
    await share(alice, "bob", context="island", permission="write")
    await alice.call("update_memory", memory_id=page, content="Sentence after sentence. " * 200)
    assert (await grants_of(alice, "granted_by_me"))[0]["grown"] == 0


async def _offer_kept(server: Server, namespace: str, name: str, target: str) -> str:
    request = RequestContext(Caller(namespace, "console", admin=True))
    return (await kept_memories.offer_kept(await server.runtime.service(), request, name, target)).offer_id


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
