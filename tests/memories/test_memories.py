"""Storing, reading, changing and deleting memories, over MCP on the real stack."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.stack import Agent, Refused, Server, Stack, text_of

from memory_core.records.keys import Keys, digest


async def test_stored_memory_is_returned_complete(alice: Agent) -> None:
    stored = await alice.call(
        "store_memory",
        content="The launch is on the 4th of May.\n  Bring cake. ☂ 日本",
        memory_type="conversation",
        priority="high",
        tags=["launch", "party"],
        context="session-1",
        source="Mel",
        occurred_at="2026-05-01T10:00:00+02:00",
        metadata={"room": 5, "nested": {"ok": True}},
    )
    memory = (await alice.call("retrieve_memory", memory_id=stored["memory_id"]))["memory"]
    assert memory["content"] == "The launch is on the 4th of May.\n  Bring cake. ☂ 日本"
    assert memory["memory_type"] == "conversation"
    assert memory["priority"] == "high"
    assert memory["tags"] == ["launch", "party"]
    assert memory["context"] == "session-1"
    assert memory["source"] == "Mel"
    assert memory["occurred_at"] == "2026-05-01T08:00:00Z"
    assert memory["metadata"] == {"room": 5, "nested": {"ok": True}}
    assert memory["writer"] == "alice"
    assert memory["rev"] == 1
    assert memory["vector"] == "ready"
    assert memory["expires_at"] == stored["expires_at"]


@pytest.mark.parametrize(
    ("priority", "days"), [("critical", None), ("high", 90), ("medium", 30), ("low", 7), ("archive", None)]
)
async def test_each_priority_has_its_lifetime(alice: Agent, priority: str, days: int | None) -> None:
    from datetime import UTC, datetime

    stored = await alice.call("store_memory", content=f"a {priority} thing", priority=priority)
    if days is None:
        assert "expires_at" not in stored
    else:
        left = datetime.fromisoformat(stored["expires_at"]) - datetime.now(UTC)
        assert abs(left.total_seconds() - days * 86_400) < 60


@pytest.mark.parametrize(
    "memory_type",
    ["conversation", "code", "document", "task", "context", "embedding", "search_result", "system_state"],
)
async def test_every_type_can_be_stored_and_filtered_by(alice: Agent, memory_type: str) -> None:
    await alice.store(f"something of type {memory_type}", memory_type=memory_type)
    await alice.store("something else", memory_type="context" if memory_type != "context" else "task")
    listed = await alice.call("get_agent_memories", memory_types=[memory_type])
    assert [memory["memory_type"] for memory in listed["memories"]] == [memory_type]


async def test_duplicate_is_stored_and_reported(alice: Agent) -> None:
    first = await alice.store("Tabs, not spaces.")
    second = await alice.call("store_memory", content="Tabs, not spaces.")
    assert second["duplicate_of"] == first
    assert second["memory_id"] != first
    assert (await alice.call("get_agent_memories"))["total"] == 2


async def test_duplicate_of_another_agents_private_memory_is_not_reported(alice: Agent, bob: Agent) -> None:
    await alice.store("The password hint is blue.")
    stored = await bob.call("store_memory", content="The password hint is blue.")
    assert "duplicate_of" not in stored
    assert stored["similar"] == []


async def test_deleted_memory_is_no_longer_a_duplicate(alice: Agent) -> None:
    first = await alice.store("Say it once.")
    await alice.call("clear_memory", memory_ids=[first])
    assert "duplicate_of" not in await alice.call("store_memory", content="Say it once.")


async def test_expired_memory_is_no_longer_a_duplicate(alice: Agent) -> None:
    brief = await alice.store("Say it twice.", ttl_seconds=1)
    async with asyncio.timeout(10):
        while not (await alice.raw("retrieve_memory", memory_id=brief)).is_error:
            await asyncio.sleep(0.05)
    assert "duplicate_of" not in await alice.call("store_memory", content="Say it twice.")


async def test_idempotency_key_of_a_deleted_memory_stores_again(alice: Agent) -> None:
    first = await alice.store("Gone and back.", idempotency_key="again")
    await alice.call("clear_memory", memory_ids=[first])
    second = await alice.call("store_memory", content="Gone and back.", idempotency_key="again")
    assert not second["replayed"]
    assert (await alice.call("retrieve_memory", memory_id=second["memory_id"]))["memory"]["vector"] == "ready"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026", "2026-01-01T00:00:00Z"),
        ("20260504", "2026-05-04T00:00:00Z"),
        ("2026-05-04", "2026-05-04T00:00:00Z"),
        ("2026-05-04T10:00:00+02:00", "2026-05-04T08:00:00Z"),
        ("1777885200", "2026-05-04T09:00:00Z"),
        (1777885200, "2026-05-04T09:00:00Z"),
        (-1.5, "1969-12-31T23:59:58.500Z"),
    ],
)
async def test_time_formats_are_understood(alice: Agent, text: str | float, meant: str) -> None:
    memory_id = await alice.store("Then.", occurred_at=text, wait=False)
    assert (await alice.call("retrieve_memory", memory_id=memory_id))["memory"]["occurred_at"] == meant


async def test_idempotency_key_stores_once(alice: Agent) -> None:
    first = await alice.call("store_memory", content="Pay the invoice.", idempotency_key="invoice-7")
    again = await alice.call("store_memory", content="Pay the invoice.", idempotency_key="invoice-7")
    assert again["memory_id"] == first["memory_id"]
    assert again["expires_at"] == first["expires_at"]
    assert again["replayed"]
    assert (await alice.call("get_agent_memories"))["total"] == 1


async def test_idempotency_key_with_another_payload_is_refused(alice: Agent) -> None:
    await alice.store("Pay the invoice.", idempotency_key="invoice-8")
    with pytest.raises(Refused) as refused:
        await alice.store("Pay another invoice.", idempotency_key="invoice-8")
    assert refused.value.code == "conflict"


async def test_agents_can_use_the_same_idempotency_key(alice: Agent, bob: Agent) -> None:
    assert await alice.store("Mine.", idempotency_key="key") != await bob.store("Yours.", idempotency_key="key")


async def test_context_is_ordered_by_store(alice: Agent) -> None:
    for turn in range(3):
        await alice.store(f"turn {turn}", context="chat", wait=False)
    await alice.store("elsewhere", context="other")
    listed = (await alice.call("get_agent_memories", context="chat"))["memories"]
    assert [(memory["content"], memory["seq"]) for memory in listed] == [("turn 2", 3), ("turn 1", 2), ("turn 0", 1)]


async def test_pages_contain_every_memory_exactly_once(alice: Agent) -> None:
    stored = [await alice.store(f"page item {number}", wait=False) for number in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page = await alice.call("get_agent_memories", limit=3, **({"cursor": cursor} if cursor else {}))
        assert page["total"] == 7
        seen += [memory["memory_id"] for memory in page["memories"]]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    assert seen == stored[::-1]


async def test_update_changes_named_fields_and_raises_the_revision(alice: Agent) -> None:
    memory_id = await alice.store("Meet at noon.", tags=["meeting"], context="day", metadata={"a": 1})
    changed = await alice.call("update_memory", memory_id=memory_id, content="Meet at one.", expected_rev=1)
    assert changed["memory"]["content"] == "Meet at one."
    assert changed["memory"]["rev"] == 2
    assert changed["memory"]["tags"] == ["meeting"]
    assert changed["memory"]["context"] == "day"
    assert changed["memory"]["vector"] == "ready"
    assert await alice.search("one", mode="keyword") == ["Meet at one."]
    assert await alice.search("noon", mode="keyword") == []


async def test_update_can_remove_values(alice: Agent) -> None:
    memory_id = await alice.store("Bare.", tags=["x"], context="y", metadata={"z": 1})
    memory = (await alice.call("update_memory", memory_id=memory_id, tags=[], context="", metadata={}))["memory"]
    assert memory["tags"] == []
    assert "context" not in memory
    assert "metadata" not in memory


async def test_update_with_a_stale_revision_is_refused_and_changes_nothing(alice: Agent) -> None:
    memory_id = await alice.store("First.")
    await alice.call("update_memory", memory_id=memory_id, content="Second.")
    with pytest.raises(Refused) as refused:
        await alice.call("update_memory", memory_id=memory_id, content="Third.", expected_rev=1)
    assert refused.value.code == "conflict"
    assert (await alice.call("retrieve_memory", memory_id=memory_id))["memory"]["content"] == "Second."


async def test_one_of_concurrent_updates_with_the_same_revision_wins(alice: Agent) -> None:
    memory_id = await alice.store("Race.")
    results = await asyncio.gather(
        *(alice.raw("update_memory", memory_id=memory_id, tags=[f"t{n}"], expected_rev=1) for n in range(5))
    )
    assert sorted(result.is_error for result in results) == [False, True, True, True, True]


async def test_concurrent_updates_without_a_revision_are_all_applied(alice: Agent) -> None:
    memory_id = await alice.store("Count me.")
    await asyncio.gather(*(alice.call("update_memory", memory_id=memory_id, tags=[f"t{n}"]) for n in range(3)))
    assert (await alice.call("retrieve_memory", memory_id=memory_id))["memory"]["rev"] == 4


async def test_counting_reads_does_not_change_the_memory(alice: Agent, stack: Stack) -> None:
    memory_id = await alice.store("Count my reads.")
    for _ in range(3):
        await alice.call("retrieve_memory", memory_id=memory_id)
    async with asyncio.timeout(10):
        while (await alice.call("retrieve_memory", memory_id=memory_id))["access_count"] < 3:
            await asyncio.sleep(0.05)
    assert (await alice.call("retrieve_memory", memory_id=memory_id))["memory"]["rev"] == 1


async def test_expired_memory_is_gone_at_once(alice: Agent) -> None:
    kept = await alice.store("I stay.")
    brief = await alice.store("I go.", ttl_seconds=1)
    async with asyncio.timeout(10):
        while (await alice.raw("retrieve_memory", memory_id=brief)).is_error is not True:
            await asyncio.sleep(0.05)
    listed = await alice.call("get_agent_memories")
    assert [memory["memory_id"] for memory in listed["memories"]] == [kept]
    assert listed["total"] == 1
    assert (await alice.call("clear_memory", expired_only=True))["deleted"] == 1


async def test_archived_memories_are_hidden_unless_requested(alice: Agent) -> None:
    await alice.store("The old treaty of the harbour.", priority="archive")
    assert await alice.search("treaty harbour") == []
    assert await alice.search("treaty harbour", include_archive=True) == ["The old treaty of the harbour."]
    assert await alice.search("treaty harbour", priorities=["archive"]) == ["The old treaty of the harbour."]


async def test_clearing_one_needs_no_confirmation(alice: Agent) -> None:
    memory_id = await alice.store("Delete me.")
    assert (await alice.call("clear_memory", memory_ids=[memory_id]))["deleted"] == 1
    with pytest.raises(Refused) as refused:
        await alice.call("retrieve_memory", memory_id=memory_id)
    assert refused.value.code == "not_found"


async def test_clearing_many_needs_confirmation_and_a_dry_run_only_counts(alice: Agent) -> None:
    for number in range(3):
        await alice.store(f"draft {number}", tags=["draft"], wait=False)
    await alice.store("final", tags=["final"], wait=False)
    assert await alice.call("clear_memory", tags=["draft"], dry_run=True) == {
        "partial": False, "matched": 3, "deleted": 0, "dry_run": True,
    }  # fmt: skip
    with pytest.raises(Refused) as refused:
        await alice.call("clear_memory", tags=["draft"])
    assert refused.value.code == "confirmation_needed"
    assert (await alice.call("clear_memory", tags=["draft"], confirm=True))["deleted"] == 3
    assert (await alice.call("get_agent_memories"))["total"] == 1


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("agreed", [True, False])
async def test_user_is_asked_before_many_memories_are_deleted(
    server: Server, namespace: str, mode: str, agreed: bool
) -> None:
    from mcp_types import ElicitResult

    asked: list[str] = []

    async def answer(_: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action="accept", content={"delete": agreed})

    async with server.agent("alice", namespace, mode, elicitation_callback=answer) as alice:
        for number in range(2):
            await alice.store(f"note {number}", tags=["note"], wait=False)
        result = await alice.raw("clear_memory", tags=["note"])
        assert asked == ["Delete 2 memories permanently?"]
        assert bool(result.is_error) is not agreed
        assert (await alice.call("get_agent_memories"))["total"] == (0 if agreed else 2)


async def test_clearing_another_agents_memories_is_refused(alice: Agent, bob: Agent) -> None:
    memory_id = await alice.store("Public, but mine.", visibility="public")
    assert (await bob.call("clear_memory", memory_ids=[memory_id])) == {
        "partial": False, "matched": 0, "deleted": 0, "dry_run": False, "not_yours": [memory_id],
    }  # fmt: skip
    assert (await bob.call("clear_memory", memory_types=["context"], confirm=True))["deleted"] == 0
    assert (await alice.call("retrieve_memory", memory_id=memory_id))["memory"]["content"] == "Public, but mine."


async def test_updating_another_agents_memory_is_refused(alice: Agent, bob: Agent) -> None:
    public = await alice.store("Public, but mine.", visibility="public")
    private = await alice.store("Private.")
    with pytest.raises(Refused) as refused:
        await bob.call("update_memory", memory_id=public, content="Hacked.")
    assert refused.value.code == "forbidden"
    with pytest.raises(Refused) as refused:
        await bob.call("update_memory", memory_id=private, content="Hacked.")
    assert refused.value.code == "not_found"


async def test_private_unknown_and_expired_memories_look_the_same(alice: Agent, bob: Agent) -> None:
    private = await alice.store("Secret plan.")
    texts = [
        text_of(await bob.raw("retrieve_memory", memory_id=memory_id)).replace(memory_id, "ID")
        for memory_id in (private, private[:-1] + ("0" if private[-1] != "0" else "1"))
    ]
    assert texts[0] == texts[1]


async def test_public_memories_are_readable_only_in_their_namespace(alice: Agent, bob: Agent, server: Server) -> None:
    await alice.store("The office closes at six.", visibility="public")
    assert await bob.search("when does the office close") == ["The office closes at six."]
    async with server.agent("bob", "another-namespace") as outsider:
        assert await outsider.search("when does the office close") == []


async def test_agent_id_filters_and_never_grants_access(alice: Agent, bob: Agent) -> None:
    await alice.store("Private thought.")
    await alice.store("Public word.", visibility="public")
    listed = await bob.call("get_agent_memories", agent_id="alice")
    assert [memory["content"] for memory in listed["memories"]] == ["Public word."]
    assert (await bob.call("get_agent_memories", agent_id="nobody-at-all"))["total"] == 0
    with pytest.raises(Refused) as refused:
        await bob.store("As Alice.", agent_id="alice")
    assert refused.value.code == "forbidden"


async def test_supplied_vector_is_searchable(alice: Agent) -> None:
    vector = [0.0] * 384
    vector[3] = 2.0
    stored = await alice.call("store_memory", content="An embedding.", memory_type="embedding", vector=vector)
    assert stored["vector"] == "ready"
    vector[4] = 0.5
    near = await alice.store("Another embedding.", memory_type="embedding", vector=vector)
    hits = (await alice.call("find_similar_memories", memory_id=near))["hits"]
    assert [hit["memory"]["memory_id"] for hit in hits] == [stored["memory_id"]]
    assert hits[0]["score"] == pytest.approx(2 / (2**2 + 0.5**2) ** 0.5, abs=1e-3)


async def test_store_without_waiting_gets_its_vector_soon(alice: Agent) -> None:
    stored = await alice.call("store_memory", content="Fast, then found.", wait=False)
    assert stored["vector"] == "pending"
    async with asyncio.timeout(10):
        while (await alice.call("retrieve_memory", memory_id=stored["memory_id"]))["memory"]["vector"] != "ready":
            await asyncio.sleep(0.02)


async def test_every_change_adds_one_audit_entry_without_gaps(alice: Agent, stack: Stack, namespace: str) -> None:
    memory_id = await alice.store("Audited.", wait=False)
    await alice.call("update_memory", memory_id=memory_id, tags=["seen"])
    await alice.call("clear_memory", memory_ids=[memory_id])
    entries = [fields for _, fields in await stack.client.xrange(Keys(namespace).audit)]
    assert [entry[b"op"] for entry in entries] == [b"store_memory", b"update_memory", b"clear_memory"]
    assert [entry[b"n"] for entry in entries] == [b"1", b"2", b"3"]
    assert all(entry[b"who"] == b"alice" and entry[b"ids"] == memory_id.encode() for entry in entries)


async def test_lists_are_accepted_as_json_text_or_comma_separated(alice: Agent) -> None:
    await alice.store("One.", tags='["red", "blue"]')
    await alice.store("Two.", tags="red,green")
    both = await alice.call("get_agent_memories", tags="red")
    assert both["total"] == 2
    assert (await alice.call("get_agent_memories", tags='["red","green"]', tag_match="all"))["total"] == 1
    assert (await alice.call("get_agent_memories", tags="blue,green", tag_match="any"))["total"] == 2


async def test_times_are_accepted_as_phrases(alice: Agent) -> None:
    await alice.store("Long ago.", occurred_at="3 weeks ago")
    await alice.store("Just now.")
    assert (await alice.call("get_agent_memories", since="2 days ago"))["total"] == 1
    assert (await alice.call("get_agent_memories", until="2 days ago"))["total"] == 1
    assert (await alice.call("get_agent_memories", since="1 month ago", until="yesterday"))["total"] == 1


async def test_memory_moved_to_another_context_is_ordered_there(alice: Agent) -> None:
    moved = await alice.store("first here", context="here", wait=False)
    await alice.store("first there", context="there", wait=False)
    memory = (await alice.call("update_memory", memory_id=moved, context="there"))["memory"]
    assert memory["seq"] == 2
    await alice.store("third there", context="there", wait=False)
    listed = (await alice.call("get_agent_memories", context="there"))["memories"]
    assert [memory["seq"] for memory in listed] == [3, 1, 2]


async def test_numbers_in_a_context_expire_with_its_last_memory(alice: Agent, stack: Stack, namespace: str) -> None:
    first = await alice.store("first", context="here", ttl_seconds=1000, wait=False)
    owner = (await stack.client.hget(Keys(namespace).memory(first), "owner")).decode()

    async def seconds_left() -> int:
        command = ("HTTL", Keys(namespace).seq(owner), "FIELDS", 1, digest("here"))
        return (await stack.client.execute_command(*command))[0]

    grace = 3600
    assert grace + 990 < await seconds_left() <= grace + 1000
    await alice.store("second", context="here", ttl_seconds=10, wait=False)
    assert grace + 990 < await seconds_left() <= grace + 1000
    await alice.store("third", context="here", ttl_seconds=5000, wait=False)
    assert grace + 4990 < await seconds_left() <= grace + 5000
    await alice.call("update_memory", memory_id=first, priority="high")
    assert await seconds_left() > 80 * 86_400
    moved = await alice.store("fourth", context="there", priority="critical", wait=False)
    await alice.call("update_memory", memory_id=moved, context="here")
    assert await seconds_left() == -1
    last = await alice.store("sixth", context="here", ttl_seconds=10, wait=False)
    assert await seconds_left() == -1
    assert (await alice.call("retrieve_memory", memory_id=last))["memory"]["seq"] == 5


async def test_agent_id_and_agent_ids_together_are_refused(alice: Agent) -> None:
    with pytest.raises(Refused) as refused:
        await alice.call("get_agent_memories", agent_id="alice", agent_ids=["bob"])
    assert refused.value.code == "invalid_argument"
