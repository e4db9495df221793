"""get_shared_context returns changed and newly visible memories by cursor, without gaps or repeats."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio
from support.embedder_fixtures import wait_until
from support.sharing_helpers import refusal, register, share
from support.stack import Agent, Server, Stack, answer_of, in_own_task, text_of

from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.settings.settings import VectorStoreSettings
from memory_core.store import index


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


async def _shared(agent: Agent, **arguments: Any) -> tuple[list[str], str]:
    """Return the contents shown and the cursor."""
    answer = await agent.call("get_shared_context", **arguments)
    assert answer["partial"] is False, answer
    return [shared["memory"]["content"] for shared in answer["memories"]], answer.get("next_cursor", "")


async def _follow(agent: Agent, cursor: str, **arguments: Any) -> list[str]:
    """Follow a cursor to its end; return all contents in order."""
    contents: list[str] = []
    while True:
        answer = await agent.call("get_shared_context", since=cursor, **arguments)
        contents += [shared["memory"]["content"] for shared in answer["memories"]]
        cursor = answer["next_cursor"]
        if not answer["more"]:
            return contents


async def test_shared_context_shows_only_granted_memories(alice: Agent, bob: Agent) -> None:
    await bob.store("bob's own", context="plan")
    await alice.store("for all", context="plan", visibility="public")
    await alice.store("one", context="plan")
    await alice.store("not shared", context="diary")
    await alice.store("two", context="plan")
    assert (await _shared(bob))[0] == []
    await share(alice, "bob", context="plan")
    assert (await _shared(bob))[0] == ["two", "one"]
    assert (await _shared(alice))[0] == []


async def test_cursor_returns_changes_oldest_first(alice: Agent, bob: Agent) -> None:
    await share(alice, "bob", context="plan")
    first = await alice.store("one", context="plan")
    await alice.store("two", context="plan")
    contents, cursor = await _shared(bob)
    assert contents == ["two", "one"]
    assert await _follow(bob, cursor) == []
    third = await alice.store("three", context="plan")
    await alice.call("update_memory", memory_id=first, content="one, changed")
    contents, later = await _shared(bob, since=cursor)
    assert contents == ["three", "one, changed"]
    assert (await _shared(bob, since=cursor))[0] == contents
    await alice.call("clear_memory", memory_ids=[third])
    assert await _follow(bob, later) == []


async def test_old_memories_under_a_new_grant_count_as_changes(alice: Agent, bob: Agent) -> None:
    for number in range(3):
        await alice.store(f"old {number}", context="plan", tags=["x"] if number else [])
    await share(alice, "bob", tags=["x"])
    _, cursor = await _shared(bob)
    await alice.store("between", tags=["x"])
    await share(alice, "bob", context="plan")
    await alice.store("after", context="plan")
    assert (await _shared(bob, since=cursor))[0] == ["between", "old 0", "after"]
    grant = await share(alice, "bob", tags=["x"])
    await alice.call("revoke_shared_context", grant_id=grant)
    assert (await _shared(bob))[0] == ["after", "old 2", "old 1", "old 0"]


async def test_duplicate_contents_are_returned_once(alice: Agent, bob: Agent, carol: Agent) -> None:
    for agent in (alice, carol):
        await share(agent, "bob", context="plan")
        for _ in range(2):
            await agent.store("the same words", context="plan")
    assert (await _shared(bob))[0] == ["the same words"]


@pytest.mark.parametrize("start", ["newest first", "from a time", "from the beginning"])
async def test_following_the_cursor_returns_everything_once(alice: Agent, bob: Agent, carol: Agent, start: str) -> None:
    _, cursor = await _shared(bob)
    for number in range(70):
        await (alice, carol)[number % 2].store(f"note {number:03}", context="plan", tags=["odd"], wait=False)
        if number == 20:
            await share(alice, "bob", context="plan")
        if number == 40:
            await share(carol, "bob", tags=["odd"])
            await share(alice, "bob", tags=["odd"])
    if start == "newest first":
        answer = await bob.call("get_shared_context", max_tokens=4000)
        contents, cursor = [shared["memory"]["content"] for shared in answer["memories"]], answer["next_cursor"]
        assert contents == [f"note {number:03}" for number in range(69, 69 - len(contents), -1)]
        assert answer["more"] is True
        await alice.store("the newest", context="plan")
        rest = await _follow(bob, cursor, max_tokens=4000)
        assert rest[-1] == "the newest"
        contents += rest[:-1]
    else:
        contents = await _follow(bob, "1 hour ago" if start == "from a time" else cursor, max_tokens=1500)
    assert sorted(contents) == [f"note {number:03}" for number in range(70)]


async def test_grant_revoked_between_pages_hides_no_other_memory(alice: Agent, bob: Agent) -> None:
    for number in range(6):
        await alice.store(f"note {number}", context="plan", tags=["x"], wait=False)
    first = await share(alice, "bob", context="plan")
    await alice.store("between", wait=False)
    await share(alice, "bob", tags=["x"])
    for number in range(6, 9):
        await alice.store(f"note {number}", context="plan", tags=["x"], wait=False)
    answer = await bob.call("get_shared_context", max_tokens=1600)
    contents = {shared["memory"]["content"] for shared in answer["memories"]}
    await alice.call("revoke_shared_context", grant_id=first)
    contents |= set(await _follow(bob, answer["next_cursor"], max_tokens=1600))
    assert contents == {f"note {number}" for number in range(9)}


async def test_content_over_the_budget_is_truncated_and_marked(alice: Agent, bob: Agent) -> None:
    await share(alice, "bob", context="plan")
    for letter in "abc":
        await alice.store(letter * 1200, context="plan")
    answer = await bob.call("get_shared_context", since="1 hour ago", max_tokens=1200)
    (shown,) = [shared["memory"]["content"] for shared in answer["memories"]]
    assert 300 < len(shown) < 1200
    assert shown == "a" * len(shown)
    assert (answer["partial"], answer["more"]) == (True, True)
    assert await _follow(bob, answer["next_cursor"], max_tokens=2500) == ["b" * 1200, "c" * 1200]


async def test_shared_context_filters_by_grantor_and_context(alice: Agent, bob: Agent, carol: Agent) -> None:
    for agent, name in ((alice, "alice"), (carol, "carol")):
        await share(agent, "bob", memory_types=["context"])
        for context in ("plan", "diary"):
            await agent.store(f"{context} of {name}", context=context)
    assert (await _shared(bob, agent_id="alice"))[0] == ["diary of alice", "plan of alice"]
    assert (await _shared(bob, context="plan"))[0] == ["plan of carol", "plan of alice"]
    contents, cursor = await _shared(bob, agent_id="carol", context="diary")
    assert contents == ["diary of carol"]
    await alice.store("more", context="diary")
    await carol.store("and more", context="diary")
    assert await _follow(bob, cursor, agent_id="carol", context="diary") == ["and more"]
    assert (await refusal(bob, "get_shared_context", since=cursor))[0] == "invalid_argument"
    for name in ("bob", "dave", "never-heard-of", "Not A Name", "} | @owner:{alice}"):
        answer = await bob.call("get_shared_context", agent_id=name)
        assert answer["memories"] == answer["granted_to_me"] == answer["offers"] == []


async def test_query_returns_best_matches_first(alice: Agent, bob: Agent) -> None:
    await bob.store("Our ships sail at dawn.", context="plan")
    await alice.store("Ships sail at noon.", context="diary")
    await share(alice, "bob", context="plan")
    await alice.store("Ships sail at dawn.", context="plan")
    await alice.store("The bakery opens at six.", context="plan")
    contents, cursor = await _shared(bob, query="when do ships sail?")
    assert (contents[0], cursor) == ("Ships sail at dawn.", "")
    assert "Our ships sail at dawn." not in contents
    assert "Ships sail at noon." not in contents
    assert (await _shared(bob, query="when do ships sail?", max_tokens=800))[0] == ["Ships sail at dawn."]
    assert (await refusal(bob, "get_shared_context", query="ships", since="1 hour ago"))[0] == "invalid_argument"


async def test_shared_context_lists_active_grants_and_pending_offers(alice: Agent, bob: Agent, carol: Agent) -> None:
    await share(alice, "bob", context="plan", permission="write", note="for the launch", expires_in_seconds=3600)
    await alice.call("share_context_with_agent", target_agent="bob", tags=["x", "y"], bidirectional=True)
    ended = await share(alice, "bob", memory_types=["code"])
    await alice.call("revoke_shared_context", grant_id=ended)
    await share(carol, "bob", memory_ids=[await carol.store("a secret")])
    seen = await bob.call("get_shared_context")
    assert [(grant["from_agent"], grant["permission"]) for grant in seen["granted_to_me"]] == [
        ("carol", "read"), ("alice", "read"), ("alice", "write"),
    ]  # fmt: skip
    assert seen["granted_to_me"][0]["memories"] == 1
    assert seen["granted_to_me"][2]["note"] == "for the launch"
    assert seen["granted_to_me"][2]["expires_at"]
    assert [offer["tags"] for offer in seen["offers"]] == [["x", "y"]]
    given = await alice.call("get_shared_context", agent_id="bob")
    assert [grant["context"] for grant in given["granted_by_me"] if grant.get("context")] == ["plan"]
    assert len(given["granted_by_me"]) == 2
    told = [[offer.pop("if_accepted") for offer in answer["offers"]] for answer in (seen, given)]
    assert "YOUR tags x, y" in told[0][0]
    assert "bob's tags x, y" in told[1][0]
    assert given["offers"] == seen["offers"]
    assert (await bob.call("get_shared_context", agent_id="carol"))["offers"] == []


@pytest.mark.parametrize(
    "cursor", ["c1.", "c1.e30", "c1.bm90IGpzb24", "c1.W10", "c1.WyJ4IixOYU4sMV0", "c1.😀", "no time"]
)
async def test_invalid_cursor_is_refused(bob: Agent, cursor: str) -> None:
    assert (await refusal(bob, "get_shared_context", since=cursor))[0] == "invalid_argument"


async def test_older_index_gets_the_change_order_field(
    alice: Agent, bob: Agent, stack: Stack, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await share(alice, "bob", context="plan")
    for number in range(3):
        await alice.store(f"note {number}", context="plan")
    keys, client, vectors = Keys(namespace), stack.client, VectorStoreSettings()
    await client.execute_command("FT.DROPINDEX", keys.index())
    await _make_index_without(monkeypatch, client, keys, vectors, "updated_at")
    await index.ensure_namespace(client, namespace, vectors)
    await wait_until(lambda: _covers_all_records(client, keys))
    assert (await _shared(bob))[0] == ["note 2", "note 1", "note 0"]


async def _make_index_without(
    monkeypatch: pytest.MonkeyPatch, client: Client, keys: Keys, settings: VectorStoreSettings, name: str
) -> None:
    whole = index.memory_fields(settings.model, settings.hnsw)
    fields = [field for field in whole if field.name != name]

    def without_field(*_: object) -> list[Any]:
        return fields

    with monkeypatch.context() as earlier:
        earlier.setattr(index, "memory_fields", without_field)
        await index.ensure_namespace(client, keys.namespace, settings)


async def _covers_all_records(client: Client, keys: Keys) -> bool:
    covered = await index.coverage(client, keys.index_alias)
    return covered is not None and covered.progress == 1.0


async def test_timestamp_is_accepted_as_cursor(alice: Agent, bob: Agent) -> None:
    await share(alice, "bob", context="plan")
    await alice.store("note", context="plan")
    assert (await _shared(bob, since=time.time() + 3600))[0] == []
    assert (await _shared(bob, since="1 hour ago"))[0] == ["note"]


async def test_tiny_budget_shows_a_useful_part_and_says_what_was_raised(alice: Agent, bob: Agent) -> None:
    await share(alice, "bob", context="plan")
    for n in range(3):
        await alice.store(f"Step {n}. " + "Oil the hinges of the gate and paint it green. " * 60, context="plan")
    cursor, shown = "1 hour ago", list[str]()
    for _ in range(3):
        result = await bob.raw("get_shared_context", since=cursor, max_tokens=1)
        assert "Note: max_tokens was raised from 1 to " in text_of(result)
        answer = answer_of(result)
        shown += [shared["memory"]["content"] for shared in answer["memories"]]
        cursor = answer["next_cursor"]
    assert [content[:7] for content in shown] == ["Step 0.", "Step 1.", "Step 2."]
    assert min(map(len, shown)) > 300
