"""A grant shows exactly what it covers in every way of reading, and nothing once it ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio
from support.embedder_fixtures import wait_until
from support.sharing_helpers import LABELS, SECRET, readable, refusal, register, share, visibility_by_read
from support.stack import Agent, Server, Stack, in_own_task

from memory_core.records.codec import unpack
from memory_core.records.keys import Keys

OTHER = "The bakery opens at six."
SELECTORS: dict[str, dict[str, Any]] = {
    "ids": {"memory_ids": []},
    "context": {"context": "island"},
    "tags": {"tags": ["gold", "silver"]},
    "types": {"memory_types": ["document", "code"]},
}


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def registered(alice: Agent, bob: Agent) -> None:
    """Both agents are registered, so that they can receive grants."""
    await register(alice, "alice")
    await register(bob, "bob")


@pytest_asyncio.fixture(loop_scope="session")
async def carol(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """A third agent."""
    async with in_own_task(server.agent("carol", namespace)) as agent:
        await register(agent, "carol")
        yield agent


@pytest.mark.parametrize("selector", SELECTORS)
async def test_granted_memory_is_visible_in_every_read_until_revoked(alice: Agent, bob: Agent, selector: str) -> None:
    await alice.store(OTHER, tags=["bread"], context="town", memory_type="conversation")
    secret = await alice.store(SECRET, **LABELS)
    what = {"memory_ids": [secret]} if selector == "ids" else SELECTORS[selector]
    grant = await share(alice, "bob", **what)
    seen = await visibility_by_read(bob, secret)
    assert seen == dict.fromkeys(seen, True)
    await alice.call("revoke_shared_context", grant_id=grant)
    seen = await visibility_by_read(bob, secret)
    assert seen == dict.fromkeys(seen, False)


@pytest.mark.parametrize("selector", ["context", "tags", "types"])
async def test_grant_covers_memories_stored_later(alice: Agent, bob: Agent, selector: str) -> None:
    await share(alice, "bob", **SELECTORS[selector])
    later = await alice.store(SECRET, **LABELS)
    other = await alice.store(OTHER, tags=["bread"], context="town")
    assert await readable(bob, [later, other]) == [later]
    await alice.call("update_memory", memory_id=other, tags=["gold"], context="island")
    assert await readable(bob, [other]) == ([] if selector == "types" else [other])
    await alice.call("update_memory", memory_id=other, tags=[], context="")
    assert await readable(bob, [other]) == []


async def test_grant_is_for_one_agent_in_one_direction(alice: Agent, bob: Agent, carol: Agent) -> None:
    hers = await alice.store(SECRET, **LABELS)
    his = await bob.store("A map of the coast.", **LABELS)
    await share(alice, "bob", context="island")
    assert await readable(bob, [hers]) == [hers]
    assert await readable(carol, [hers, his]) == []
    assert await readable(alice, [his]) == []
    assert (await bob.call("clear_memory", memory_ids=[hers], confirm=True))["deleted"] == 0
    assert (await bob.call("clear_memory", context="island", confirm=True))["deleted"] == 1
    assert await readable(alice, [hers]) == [hers]


@pytest.mark.long
async def test_expired_grant_shows_nothing_in_any_read(alice: Agent, bob: Agent, stack: Stack, namespace: str) -> None:
    secret = await alice.store(SECRET, **LABELS)
    granted = await alice.call("share_context_with_agent", target_agent="bob", context="island", expires_in_seconds=1)
    assert granted["expires_at"]

    async def is_over() -> bool:
        return not await readable(bob, [secret])

    await wait_until(is_over)
    seen = await visibility_by_read(bob, secret)
    assert seen == dict.fromkeys(seen, False)
    keys = Keys(namespace)

    async def is_swept() -> bool:
        return not await stack.client.hlen(keys.granted("bob")) and not await stack.client.zcard(keys.grants_due)

    await wait_until(is_swept, 30)
    assert await stack.client.ttl(keys.grant(granted["grant_id"])) > 29 * 86_400


async def test_sharing_again_replaces_end_and_permission(alice: Agent, bob: Agent) -> None:
    secret = await alice.store(SECRET, **LABELS)
    first = await alice.call("share_context_with_agent", target_agent="bob", tags=["gold", "x"], expires_in_seconds=1)
    again = await alice.call("share_context_with_agent", target_agent="bob", tags=["x", "gold"])
    writing = await share(alice, "bob", tags=["gold", "x"], permission="write")
    assert first["grant_id"] == again["grant_id"] == writing
    assert "expires_at" not in again
    await alice.call("revoke_shared_context", grant_id=writing)
    assert await readable(bob, [secret]) == []


@pytest.mark.parametrize("kind", SELECTORS)
async def test_sharing_again_as_read_ends_write_permission(alice: Agent, bob: Agent, carol: Agent, kind: str) -> None:
    secret = await alice.store(SECRET, **LABELS)
    chosen = {"memory_ids": [secret]} if kind == "ids" else SELECTORS[kind]
    grant = await share(alice, "bob", permission="write", **chosen)
    await bob.call("update_memory", memory_id=secret, content="Bob was here.")
    await share(bob, "carol", memory_ids=[secret])
    assert await readable(carol, [secret]) == [secret]
    assert await share(alice, "bob", permission="read", **chosen) == grant
    assert (await refusal(bob, "update_memory", memory_id=secret, content="x"))[0] == "forbidden"
    assert await readable(bob, [secret]) == [secret]
    assert await readable(carol, [secret]) == []
    assert await share(alice, "bob", permission="write", **chosen) == grant
    await bob.call("update_memory", memory_id=secret, content="Bob is back.")
    assert await readable(carol, [secret]) == []


async def test_sharing_another_selector_changes_no_other_grant(alice: Agent, bob: Agent) -> None:
    secret = await alice.store(SECRET, **LABELS)
    await share(alice, "bob", tags=["gold"], permission="write")
    await share(alice, "bob", tags=["gold", "x"])
    await share(alice, "bob", context="island")
    await bob.call("update_memory", memory_id=secret, content="Bob was here.")


async def test_write_grant_covers_only_content_and_metadata(alice: Agent, bob: Agent) -> None:
    secret = await alice.store(SECRET, **LABELS)
    grant = await share(alice, "bob", context="island")
    assert (await refusal(bob, "update_memory", memory_id=secret, content="x"))[0] == "forbidden"
    writing = await share(alice, "bob", context="island", permission="write")
    changed = await bob.call("update_memory", memory_id=secret, content="The chest is empty.", metadata={"by": "bob"})
    assert (changed["memory"]["content"], changed["memory"]["writer"]) == ("The chest is empty.", "bob")
    assert await alice.search("is the chest empty?") == ["The chest is empty."]
    for change in ({"tags": ["new"]}, {"visibility": "public"}, {"context": "town"}, {"priority": "critical"}):
        assert (await refusal(bob, "update_memory", memory_id=secret, content="y", **change))[0] == "forbidden"
    assert await share(alice, "bob", context="island") == writing == grant
    assert (await refusal(bob, "update_memory", memory_id=secret, content="x"))[0] == "forbidden"
    await alice.call("revoke_shared_context", grant_id=grant)
    assert (await refusal(bob, "update_memory", memory_id=secret, content="x"))[0] == "not_found"
    memory = (await alice.call("retrieve_memory", memory_id=secret))["memory"]
    assert (memory["content"], memory["rev"], memory["tags"]) == ("The chest is empty.", 2, ["gold"])


async def test_writer_reshares_and_loses_access_with_the_grant(alice: Agent, bob: Agent, carol: Agent) -> None:
    hers = await alice.store(SECRET, **LABELS)
    his = await bob.store("A map of the coast.", **LABELS)
    above = await share(alice, "bob", context="island", permission="write")
    await share(bob, "carol", context="island")
    await share(bob, "carol", memory_ids=[hers, his])
    assert await readable(carol, [hers, his]) == [hers, his]
    answer = await alice.call("revoke_shared_context", grant_id=above)
    assert answer["grants_ended"] == 1
    assert await readable(carol, [hers, his]) == [his]


async def test_reshared_id_ends_when_no_parent_grant_covers_it(alice: Agent, bob: Agent, carol: Agent) -> None:
    hers = await alice.store(SECRET, **LABELS)
    await share(alice, "bob", context="island", permission="write")
    await share(alice, "bob", tags=["gold"], permission="write")
    await share(bob, "carol", memory_ids=[hers])
    await alice.call("update_memory", memory_id=hers, context="home")
    assert await readable(carol, [hers]) == [hers]
    await alice.call("update_memory", memory_id=hers, tags=["iron"])
    assert await readable(bob, [hers]) == []
    assert await readable(carol, [hers]) == []
    await alice.call("update_memory", memory_id=hers, tags=["gold"], context="island")
    assert await readable(bob, [hers]) == [hers]
    assert await readable(carol, [hers]) == []


async def test_reshared_id_needs_a_parent_grant_that_is_not_revoked(
    alice: Agent, bob: Agent, carol: Agent, stack: Stack, namespace: str
) -> None:
    hers, other = await alice.store(SECRET, **LABELS), await alice.store(OTHER, **LABELS)
    by_context = await share(alice, "bob", context="island", permission="write")
    by_tag = await share(alice, "bob", tags=["gold"], permission="write")
    await share(bob, "carol", memory_ids=[hers])
    await share(bob, "carol", memory_ids=[other, await bob.store("A map of the coast.")])
    await alice.call("revoke_shared_context", grant_id=by_context)
    assert await readable(carol, [hers, other]) == [hers, other]
    await alice.call("update_memory", memory_id=hers, tags=["iron"])
    assert await readable(carol, [hers, other]) == [other]
    await alice.call("revoke_shared_context", grant_id=by_tag)
    assert await readable(carol, [hers, other]) == []
    assert not await stack.client.exists(Keys(namespace).reshared(hers), Keys(namespace).reshared(other))


async def test_reshare_ends_no_later_than_its_parent_grant(
    alice: Agent, bob: Agent, carol: Agent, stack: Stack, namespace: str
) -> None:
    hers = await alice.store(SECRET, **LABELS)
    keys = Keys(namespace)

    async def ends(name: str, grant: str, above: str = "") -> float:
        entry = unpack(await stack.client.hget(keys.granted(name), grant))
        return (entry["via"][above] if above else entry)["ends"]

    above = await share(alice, "bob", context="island", permission="write", expires_in_seconds=3600)
    lasting = await share(bob, "carol", context="island")
    shorter = await share(bob, "carol", memory_ids=[hers], expires_in_seconds=60)
    assert await ends("carol", lasting) == math.inf
    assert await ends("carol", lasting, above) == await ends("bob", above)
    assert await ends("carol", shorter, above) == await ends("carol", shorter)
    await share(alice, "bob", context="island", permission="write", expires_in_seconds=1)
    assert await ends("carol", lasting, above) == await ends("carol", shorter, above) == await ends("bob", above)

    async def is_over() -> bool:
        return not await readable(carol, [hers])

    await wait_until(is_over)


async def test_bidirectional_share_is_a_grant_and_an_offer_until_returned(alice: Agent, bob: Agent) -> None:
    hers = await alice.store(SECRET, **LABELS)
    his = await bob.store("A map of the coast.", **LABELS)
    offered = await alice.call("share_context_with_agent", target_agent="bob", context="island", bidirectional=True)
    again = await alice.call("share_context_with_agent", target_agent="bob", context="island", bidirectional=True)
    assert offered["offer_id"] == again["offer_id"]
    assert (await readable(bob, [hers]), await readable(alice, [his])) == ([hers], [])
    await share(bob, "alice", context="elsewhere")
    assert await readable(alice, [his]) == []
    accepted = await bob.call("share_context_with_agent", target_agent="alice", context="island", bidirectional=True)
    assert accepted["accepted_offer"] == offered["offer_id"]
    assert "offer_id" not in accepted
    assert await readable(alice, [his]) == [his]
    back = await alice.call("share_context_with_agent", target_agent="bob", context="island", bidirectional=True)
    assert "offer_id" not in back


@pytest.mark.parametrize("by", ["alice", "bob"])
async def test_either_side_can_withdraw_an_offer(alice: Agent, bob: Agent, carol: Agent, by: str) -> None:
    offered = await alice.call("share_context_with_agent", target_agent="bob", tags=["gold"], bidirectional=True)
    offer = offered["offer_id"]
    assert (await refusal(carol, "revoke_shared_context", grant_id=offer))[0] == "not_found"
    side = alice if by == "alice" else bob
    assert (await side.call("revoke_shared_context", grant_id=offer))["grants_ended"] == 0
    accepted = await bob.call("share_context_with_agent", target_agent="alice", tags=["gold"])
    assert "accepted_offer" not in accepted


async def test_events_and_audit_record_grants(alice: Agent, bob: Agent, stack: Stack, namespace: str) -> None:
    grant = await share(alice, "bob", tags=["gold"], bidirectional=True)
    await share(bob, "alice", tags=["gold"])
    await alice.call("revoke_shared_context", grant_id=grant)
    keys = Keys(namespace)
    events = [fields for _, fields in await stack.client.xrange(keys.events) if fields[b"kind"] == b"grant"]
    assert [event[b"op"].decode() for event in events] == ["granted", "offered", "granted", "accepted", "revoked"]
    assert {tuple(sorted(event[b"to"].decode().split("\x1f"))) for event in events} == {("alice", "bob")}
    assert (events[0][b"id"].decode(), events[0][b"by"]) == (grant, b"alice")
    audited = [fields[b"op"].decode() for _, fields in await stack.client.xrange(keys.audit)]
    assert [op for op in audited if "share" in op or "revoke" in op] == [
        "share_context_with_agent",
        "share_context_with_agent",
        "revoke_shared_context",
    ]


async def test_concurrent_shares_create_one_grant(alice: Agent, bob: Agent) -> None:
    await alice.store(SECRET, **LABELS)
    grants = await asyncio.gather(*(share(alice, "bob", context="island") for _ in range(8)))
    assert len(set(grants)) == 1
