"""Before an agent accepts an offer, every form of every answer says that accepting also shares its own memories."""

from __future__ import annotations

import json

import pytest
from support.sharing_helpers import readable, register
from support.stack import Agent, Server, text_of

WHAT = [
    ({"context": "island"}, "context island"),
    ({"tags": ["gold", "map"]}, "tags gold, map"),
    ({"memory_types": ["document"]}, "type document"),
]


@pytest.mark.parametrize(("what", "named"), WHAT)
async def test_receiver_reads_that_accepting_shares_its_own_memories(
    alice: Agent, bob: Agent, what: dict[str, object], named: str
) -> None:
    await register(bob, "bob")
    cursor = (await bob.call("wait_for_events", timeout_seconds=0))["cursor"]
    shared = await alice.call(
        "share_context_with_agent", target_agent="bob", bidirectional=True, permission="write", note="Hi.", **what
    )
    offer = shared["offer_id"]
    said = f"shares YOUR {named} (private and later memories too) with alice (write)"
    listed = await bob.raw("get_shared_context")
    events = await bob.raw("wait_for_events", cursor=cursor, timeout_seconds=0)
    for result in (listed, events):
        for form in (text_of(result), json.dumps(result.structured_content)):
            (line,) = [line for line in form.split("\n") if offer in line and said in line]
            assert line.index(said) < line.rindex("Hi.") or form is not text_of(listed)
    given = text_of(await alice.raw("get_shared_context"))
    assert f"if bob accepts, bob's {named} (private and later memories too) is shared with you (write)" in given
    accepted = await bob.raw("answer_offer", offer_id=offer)
    for form in (text_of(accepted), json.dumps(accepted.structured_content)):
        assert named in form
        assert "alice" in form
    assert f"YOUR {named}" in text_of(accepted)


async def test_sharer_hears_what_an_accepted_offer_gives_it(alice: Agent, bob: Agent) -> None:
    await register(alice, "alice")
    await register(bob, "bob")
    shared = await alice.call("share_context_with_agent", target_agent="bob", bidirectional=True, context="island")
    await bob.call("answer_offer", offer_id=shared["offer_id"])
    events = (await alice.call("wait_for_events", timeout_seconds=0))["events"]
    assert f"bob accepted offer {shared['offer_id']} and shares context island with you too" in [
        event["what"] for event in events
    ]


async def test_transfer_says_that_accepting_makes_the_memories_the_receivers_own(alice: Agent, bob: Agent) -> None:
    await register(alice, "alice")
    await register(bob, "bob")
    cursor = (await bob.call("wait_for_events", timeout_seconds=0))["cursor"]
    await alice.store("The chart is in the chest.")
    await alice.call("unregister_agent", memories="transfer", transfer_to="bob")
    assert "accepting makes 1 memory of alice YOURS" in text_of(await bob.raw("get_shared_context"))
    told = text_of(await bob.raw("wait_for_events", cursor=cursor, kinds=["grant"], timeout_seconds=0))
    assert "memory of alice YOURS" in told


@pytest.mark.parametrize("way", ["answer", "share back"])
async def test_offer_of_an_agent_that_never_registered_can_be_accepted(
    server: Server, namespace: str, bob: Agent, way: str
) -> None:
    await register(bob, "bob")
    his = await bob.store("A map of the coast.", context="island")
    async with server.agent("visitor", namespace) as visitor:
        hers = await visitor.store("A tide table.", context="island")
        shared = await visitor.call(
            "share_context_with_agent", target_agent="bob", bidirectional=True, context="island"
        )
        assert await readable(bob, [hers]) == [hers]
        if way == "answer":
            assert (await bob.call("answer_offer", offer_id=shared["offer_id"]))["accepted"]
        else:
            back = await bob.call("share_context_with_agent", target_agent="visitor", context="island")
            assert back["accepted_offer"] == shared["offer_id"]
        assert await readable(visitor, [his]) == [his]
