"""Tries every path by which an agent could share without permission or give itself access."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio
from support.embedder_fixtures import wait_until
from support.sharing_helpers import readable, refusal, register, share
from support.stack import Agent, Server, Stack, in_own_task

from memory_core.records import owners
from memory_core.records.keys import Keys
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.service import Service
from memory_server.sharing import grants

SECRET = "The treasure chest is buried under the old lighthouse."
UNKNOWN = "01arz3ndektsv4rrffq69g5fav"
LABELS: dict[str, Any] = {"tags": ["gold"], "context": "island", "memory_type": "document"}
SELECTORS: list[dict[str, Any]] = [{"context": "island"}, {"tags": ["gold"]}, {"memory_types": ["document"]}]
SHARE, REVOKE = "share_context_with_agent", "revoke_shared_context"


@pytest_asyncio.fixture(loop_scope="session")
async def carol(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """A third agent."""
    async with in_own_task(server.agent("carol", namespace)) as agent:
        yield agent


@pytest_asyncio.fixture(loop_scope="session")
async def dave(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """A fourth agent."""
    async with in_own_task(server.agent("dave", namespace)) as agent:
        yield agent


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def registered(alice: Agent, bob: Agent, carol: Agent, dave: Agent) -> None:
    """All agents are registered, so that they can receive grants."""
    for name, agent in (("alice", alice), ("bob", bob), ("carol", carol), ("dave", dave)):
        await register(agent, name)


@pytest_asyncio.fixture(loop_scope="session")
async def secret(alice: Agent) -> str:
    """A private memory of alice's."""
    return await alice.store(SECRET, **LABELS)


async def _same_answer(agent: Agent, tool: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two calls get the same bytes apart from their arguments."""
    answers: list[str] = []
    for call in (one, other):
        text = (await agent.raw(tool, **call)).model_dump_json()
        for value in call.values():
            text = text.replace(value[0] if isinstance(value, list) else value, "X")
        answers.append(text)
    return answers[0] == answers[1]


@pytest.mark.parametrize("visibility", ["private", "shared", "public"])
async def test_sharing_foreign_and_unknown_memories_fails_identically(
    alice: Agent, bob: Agent, carol: Agent, visibility: str
) -> None:
    hers = await alice.store("A map of the coast.", visibility=visibility)
    gone = await bob.store("soon gone")
    await bob.call("clear_memory", memory_ids=[gone])
    own = await bob.store("bob's own")
    for memory_id in (hers, gone):
        one, other = ({"target_agent": "carol", "memory_ids": [each]} for each in (memory_id, UNKNOWN))
        assert await _same_answer(bob, SHARE, one, other)
        assert (await refusal(bob, SHARE, target_agent="carol", memory_ids=[own, memory_id]))[0] == "not_found"
    assert await readable(carol, [own]) == []


async def test_unregistered_agents_are_indistinguishable(server: Server, alice: Agent, namespace: str) -> None:
    async with server.agent("erin", namespace) as erin:
        await erin.store("I write, but I never registered.")
    one, other = ({"target_agent": name, "context": "island"} for name in ("erin", "never-heard-of"))
    assert await _same_answer(alice, SHARE, one, other)
    assert (await refusal(alice, SHARE, target_agent="erin", context="island"))[0] == "not_found"


async def test_read_only_memory_cannot_be_reshared(alice: Agent, bob: Agent, carol: Agent, secret: str) -> None:
    await share(alice, "bob", context="island")
    assert (await refusal(bob, SHARE, target_agent="carol", memory_ids=[secret]))[0] == "not_found"
    for selector in SELECTORS:
        await share(bob, "carol", **selector)
    assert await readable(carol, [secret]) == []


async def test_reshared_memory_cannot_be_reshared_again(
    alice: Agent, bob: Agent, carol: Agent, dave: Agent, secret: str
) -> None:
    await share(alice, "bob", context="island", permission="write")
    await share(bob, "carol", context="island", permission="write")
    await share(bob, "carol", memory_ids=[secret], permission="write")
    assert await readable(carol, [secret]) == [secret]
    assert (await refusal(carol, SHARE, target_agent="dave", memory_ids=[secret]))[0] == "not_found"
    for selector in SELECTORS:
        await share(carol, "dave", **selector)
    assert await readable(dave, [secret]) == []


async def test_writer_can_reshare_only_what_its_grant_covers(
    alice: Agent, bob: Agent, carol: Agent, secret: str
) -> None:
    other = await alice.store("A map of the coast.", tags=["gold"], context="home", memory_type="document")
    await share(alice, "bob", context="island", permission="write")
    await share(bob, "carol", tags=["gold"])
    await share(bob, "carol", memory_types=["document"])
    await share(bob, "carol", context="home")
    assert (await refusal(bob, SHARE, target_agent="carol", memory_ids=[other]))[0] == "not_found"
    assert await readable(carol, [secret, other]) == []


async def test_agent_cannot_share_with_itself(alice: Agent, bob: Agent, secret: str) -> None:
    for selector in ({"memory_ids": [secret]}, *SELECTORS):
        assert (await refusal(bob, SHARE, target_agent="bob", **selector))[0] == "invalid_argument"
    await share(alice, "bob", context="island", permission="write")
    assert (await refusal(bob, SHARE, target_agent="bob", context="island"))[0] == "invalid_argument"


async def test_write_grant_does_not_allow_widening_read_access(
    alice: Agent, bob: Agent, carol: Agent, secret: str
) -> None:
    await share(alice, "carol", tags=["open"])
    await share(alice, "bob", context="island", permission="write")
    changes: list[dict[str, Any]] = [
        {"tags": ["gold", "open"]}, {"visibility": "public"}, {"context": "elsewhere"}, {"priority": "critical"},
        {"content": "x", "tags": ["open"]},
    ]  # fmt: skip
    for change in changes:
        assert (await refusal(bob, "update_memory", memory_id=secret, **change))[0] == "forbidden"
    await bob.call("update_memory", memory_id=secret, metadata={"tags": ["open"], "visibility": "public"})
    assert await readable(carol, [secret]) == []
    assert (await bob.call("clear_memory", memory_ids=[secret], confirm=True))["deleted"] == 0
    assert (await alice.call("retrieve_memory", memory_id=secret))["memory"]["expires_at"]


async def test_offer_gives_no_access_until_accepted(alice: Agent, bob: Agent, carol: Agent, secret: str) -> None:
    for selector in SELECTORS:
        await bob.call(SHARE, target_agent="alice", bidirectional=True, **selector)
        await carol.call(SHARE, target_agent="bob", bidirectional=True, **selector)
        await share(carol, "bob", **selector)
        await share(bob, "carol", **selector)
    assert await readable(bob, [secret]) == []
    await share(alice, "carol", context="island")
    await share(alice, "bob", context="harbour")
    await share(alice, "bob", tags=["gold", "silver", "bronze"][1:])
    assert await readable(bob, [secret]) == []
    assert len((await alice.call("get_shared_context"))["offers"]) == 3
    refused = await refusal(bob, SHARE, target_agent="alice", memory_ids=[secret], bidirectional=True)
    assert refused[0] == "invalid_argument"


async def test_batch_and_agent_id_do_not_bypass_permissions(
    alice: Agent, bob: Agent, carol: Agent, secret: str
) -> None:
    answer = await bob.call(
        "batch_operations",
        operations=[
            {"op": SHARE, "target_agent": "carol", "memory_ids": [secret]},
            {"op": SHARE, "target_agent": "bob", "context": "island"},
            {"op": SHARE, "target_agent": "bob", "context": "island", "agent_id": "alice"},
            {"op": SHARE, "target_agent": "carol", "context": "island"},
            {"op": "get_shared_context", "agent_id": "alice"},
        ],
    )
    codes = [result.get("error", {}).get("code", "ok") for result in answer["results"]]
    assert codes == ["not_found", "invalid_argument", "invalid_argument", "ok", "ok"]
    assert answer["results"][4]["result"]["memories"] == []
    assert await readable(carol, [secret]) == await readable(bob, [secret]) == []


async def test_new_agent_with_the_same_name_inherits_nothing(
    alice: Agent, bob: Agent, carol: Agent, secret: str, stack: Stack, service: Service, namespace: str
) -> None:
    grant = await share(alice, "bob", context="island", permission="write")
    given = await share(bob, "carol", tags=["his"])
    keys = Keys(namespace)
    earlier = await stack.client.hgetall(keys.agent("bob"))
    codes = owners.proofs(service.backend.integrity, namespace, "bob", ["another"], "")
    another = {"owner": "another", "owners": "another", "proofs": owners.join_proofs(codes or {})}
    await stack.client.hset(keys.agent("bob"), mapping=another)
    assert await readable(bob, [secret]) == []
    assert (await bob.call("get_shared_context"))["granted_to_me"] == []
    assert (await refusal(bob, "update_memory", memory_id=secret, content="x"))[0] == "not_found"
    assert (await refusal(bob, SHARE, target_agent="carol", memory_ids=[secret]))[0] == "not_found"
    assert (await refusal(bob, REVOKE, grant_id=given))[0] == "not_found"
    await share(bob, "carol", context="island")
    assert await readable(carol, [secret]) == []
    await stack.client.hset(keys.agent("bob"), mapping=earlier)
    assert await readable(bob, [secret]) == [secret]
    await alice.call(REVOKE, grant_id=grant)


async def test_only_grantor_grantee_or_admin_can_end_a_grant(
    server: Server, alice: Agent, bob: Agent, carol: Agent, secret: str, namespace: str
) -> None:
    grant = await share(alice, "bob", context="island", permission="write")
    assert await _same_answer(carol, REVOKE, {"grant_id": grant}, {"grant_id": UNKNOWN})
    assert (await refusal(carol, REVOKE, grant_id=grant))[0] == "not_found"
    assert await readable(bob, [secret]) == [secret]
    service = await server.runtime.service()
    await grants.revoke_shared(service, RequestContext(Caller(namespace, "root", admin=True)), grant)
    assert await readable(bob, [secret]) == []
    assert (await alice.call(REVOKE, grant_id=grant))["grants_ended"] == 0
    declined = await share(alice, "bob", context="island", permission="write")
    passed_on = await share(bob, "carol", context="island")
    assert await readable(carol, [secret]) == [secret]
    assert (await bob.call(REVOKE, grant_id=declined))["grants_ended"] == 1
    assert await readable(bob, [secret]) == await readable(carol, [secret]) == []
    assert (await refusal(alice, REVOKE, grant_id=passed_on))[0] == "not_found"


async def test_expired_parent_grant_ends_its_reshares(alice: Agent, bob: Agent, carol: Agent, secret: str) -> None:
    await share(alice, "bob", context="island", permission="write", expires_in_seconds=1)

    async def is_over() -> bool:
        return not await readable(bob, [secret])

    await wait_until(is_over)
    assert (await refusal(bob, SHARE, target_agent="carol", memory_ids=[secret]))[0] == "not_found"
    await share(bob, "carol", context="island")
    assert await readable(carol, [secret]) == []


async def test_concurrent_reshare_and_revoke_leave_no_access(
    alice: Agent, bob: Agent, carol: Agent, secret: str
) -> None:
    outcomes: set[bool] = set()
    for _ in range(20):
        grant = await share(alice, "bob", context="island", permission="write")
        by_ids, _, by_label = await asyncio.gather(
            bob.raw(SHARE, target_agent="carol", memory_ids=[secret]),
            alice.raw(REVOKE, grant_id=grant),
            bob.raw(SHARE, target_agent="carol", context="island"),
        )
        outcomes.add(bool(by_ids.is_error))
        assert not by_label.is_error
        assert await readable(carol, [secret]) == []
    assert outcomes


async def test_reshare_under_two_grants_lasts_while_either_does(
    alice: Agent, bob: Agent, carol: Agent, secret: str
) -> None:
    by_context = await share(alice, "bob", context="island", permission="write")
    by_tag = await share(alice, "bob", tags=["gold"], permission="write")
    await share(bob, "carol", memory_ids=[secret])
    assert (await alice.call(REVOKE, grant_id=by_context))["grants_ended"] == 1
    assert await readable(carol, [secret]) == [secret]
    assert (await alice.call(REVOKE, grant_id=by_tag))["grants_ended"] == 2
    assert await readable(carol, [secret]) == []


async def test_sensitive_memory_can_be_shared_only_by_id(alice: Agent, bob: Agent, carol: Agent) -> None:
    secret = await alice.store(SECRET, sensitive=True, **LABELS)
    for selector in SELECTORS:
        await share(alice, "bob", permission="write", **selector)
    assert await readable(bob, [secret]) == []
    assert (await refusal(bob, SHARE, target_agent="carol", memory_ids=[secret]))[0] == "not_found"
    await share(alice, "bob", memory_ids=[secret])
    assert await readable(bob, [secret]) == [secret]


async def test_labels_that_look_like_tokens_are_only_labels(
    alice: Agent, bob: Agent, secret: str, stack: Stack, namespace: str
) -> None:
    owner = (await stack.client.hget(Keys(namespace).agent("alice"), "owner")).decode()
    for label in (f"o:{owner}", f"i:{secret}", "pub", "*", f"}} | @scope:{{o:{owner}}}", "$p0"):
        await share(bob, "alice", tags=[label], permission="write")
        await share(alice, "bob", tags=[label], permission="write")
        await share(alice, "bob", context=label)
    assert await readable(bob, [secret]) == []
    assert (await bob.call("get_shared_context"))["memories"] == []


BAD: dict[str, dict[str, Any]] = {
    "no selector": {},
    "two selectors": {"context": "a", "tags": ["b"]},
    "no ids": {"memory_ids": []},
    "an empty context": {"context": ""},
    "an empty tag": {"tags": [""]},
    "no types": {"memory_types": []},
    "101 ids": {"memory_ids": [f"{number:026}" for number in range(101)]},
    "an invalid id": {"memory_ids": ["a\x1fb"]},
    "an unknown type": {"memory_types": ["dream"]},
    "an unknown permission": {"context": "a", "permission": "admin"},
    "zero seconds": {"context": "a", "expires_in_seconds": 0},
    "more than a century": {"context": "a", "expires_in_seconds": 101 * 365 * 86_400},
    "a long note": {"context": "a", "note": "x" * 1025},
    "a note with NUL": {"context": "a", "note": "x\x00"},
    "a separator in a tag": {"tags": ["a\x1fb"]},
}


@pytest.mark.parametrize("case", BAD)
async def test_invalid_input_is_refused_and_shares_nothing(
    alice: Agent, stack: Stack, namespace: str, case: str
) -> None:
    assert (await refusal(alice, SHARE, target_agent="bob", **BAD[case]))[0] == "invalid_argument"
    assert not await stack.client.hlen(Keys(namespace).granted("bob"))
    assert (await refusal(alice, SHARE, target_agent="Not*A*Name", context="a"))[0] == "invalid_argument"


async def test_agent_gives_another_at_most_64_grants_which_can_be_renewed(alice: Agent, bob: Agent) -> None:
    operations = [{"op": SHARE, "target_agent": "bob", "context": f"c{number}"} for number in range(64)]
    answer = await alice.call("batch_operations", operations=operations)
    assert answer["failed"] == 0
    code, text = await refusal(alice, SHARE, target_agent="bob", context="one more")
    assert (code, "64 grants" in text) == ("conflict", True)
    await share(alice, "bob", context="c17")
    await alice.call(REVOKE, grant_id=answer["results"][3]["result"]["grant_id"])
    await share(alice, "bob", context="one more")
    await alice.store("note", context="c50")
    assert await bob.search("note", agent_ids=["alice"]) == ["note"]


async def test_grants_to_another_agent_name_at_most_512_tokens(alice: Agent, bob: Agent) -> None:
    stored = await alice.call(
        "batch_operations",
        operations=[{"op": "store_memory", "content": f"note {number}"} for number in range(100)],
    )
    ids = [result["result"]["memory_id"] for result in stored["results"]]
    operations = [{"op": SHARE, "target_agent": "bob", "memory_ids": [*ids[n:], *ids[: n - 1]]} for n in range(1, 7)]
    answer = await alice.call("batch_operations", operations=operations)
    failed = [result["error"]["code"] for result in answer["results"] if not result["ok"]]
    assert failed == ["conflict"]
    assert "512" in answer["results"][-1]["error"]["message"]


async def test_agent_has_at_most_64_pending_offers_of_another(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    keys = Keys(namespace)
    operations = [
        {"op": SHARE, "target_agent": "bob", "context": f"c{number}", "bidirectional": True} for number in range(63)
    ]
    assert (await alice.call("batch_operations", operations=operations))["failed"] == 0
    await alice.call(SHARE, target_agent="bob", tags=["x"], bidirectional=True)
    for grant in (await alice.call("get_shared_context"))["granted_by_me"][:1]:
        await alice.call(REVOKE, grant_id=grant["id"])
    code, text = await refusal(alice, SHARE, target_agent="bob", tags=["y"], bidirectional=True)
    assert (code, "64 offers" in text) == ("conflict", True)
    assert await stack.client.hlen(keys.offers("bob")) == 64
    await alice.call(SHARE, target_agent="bob", context="c9", bidirectional=True)


async def test_unregistering_ends_all_grants_by_and_to_the_agent(
    alice: Agent, bob: Agent, carol: Agent, secret: str, stack: Stack, namespace: str
) -> None:
    await share(alice, "bob", context="island", permission="write")
    await share(bob, "carol", context="island")
    his = await bob.store("bob's own", tags=["his"])
    await share(bob, "carol", tags=["his"])
    stays = await share(alice, "carol", memory_types=["code"])
    await bob.call(SHARE, target_agent="alice", tags=["his"], bidirectional=True)
    await carol.call(SHARE, target_agent="bob", context="hers", bidirectional=True)
    assert (await bob.call("unregister_agent"))["grants_revoked"] == 5
    assert await readable(bob, [secret]) == await readable(carol, [secret, his]) == []
    keys, names = Keys(namespace), ("granted", "granting", "offers", "children", "reshared")
    left = [key for name in names async for key in stack.client.scan_iter(match=f"{keys.prefix}{name}:*")]
    assert sorted(left) == [keys.granted("carol").encode(), keys.granting("alice").encode()]
    await register(bob, "bob")
    assert await readable(bob, [secret, his]) == []
    assert (await bob.call("get_shared_context"))["granted_by_me"] == []
    seen = await carol.call("get_shared_context")
    assert [grant["id"] for grant in seen["granted_to_me"]] == [stays]
    assert seen["offers"] == []
