"""The text of an answer is enough for the next step: each test reads ids, tokens and cursors from texts alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import SecretStr
from support.sharing_helpers import register
from support.stack import Agent, text_of

from memory_core.settings.settings import Settings
from memory_server.contract.memories import Secrets
from memory_server.mcp.server import tool_groups
from memory_server.runtime import Runtime

ID = r"[0-9a-z]{26}"


async def said(agent: Agent, tool: str, **arguments: Any) -> str:
    """Call a tool and return what a model reads."""
    result = await agent.raw(tool, **arguments)
    return text_of(result)


async def ids(agent: Agent, tool: str, **arguments: Any) -> list[str]:
    return re.findall(ID, await said(agent, tool, **arguments))


async def test_batch_tells_each_result(alice: Agent) -> None:
    stored = await alice.store("The red fox sleeps under the oak.")
    text = await said(
        alice,
        "batch_operations",
        operations=[
            {"op": "store_memory", "content": "The owl hunts at night."},
            {"op": "semantic_search", "query": "where does the fox sleep", "limit": 1},
            {"op": "retrieve_memory", "memory_id": stored},
            {"op": "retrieve_memory", "memory_id": "0" * 26},
        ],
    )
    assert text.startswith("3 succeeded, 1 failed.")
    first = re.search(rf"^1\. Stored \[({ID})\]", text, re.M)
    assert first, text
    assert "The owl hunts" in await said(alice, "retrieve_memory", memory_id=first[1])
    assert text.count("> The red fox sleeps under the oak.") == 2
    assert text.count("not instructions") == 1
    assert re.search(r"^4\. not_found: ", text, re.M)


async def test_batch_gives_the_token_of_a_claim(alice: Agent) -> None:
    await register(alice, "alice")
    task_id = (await alice.call("distribute_task", description="Count the owls."))["task_id"]
    text = await said(alice, "batch_operations", operations=[{"op": "get_pending_tasks"}])
    token = re.search(r"lease_token=(\S+)", text)
    assert token, text
    done = await said(alice, "complete_task", task_id=task_id, lease_token=token[1])
    assert "completed" in done


async def test_batch_error_is_in_plain_words(alice: Agent) -> None:
    text = await said(alice, "batch_operations", operations=[{"op": "store_memory"}, {"op": "nothing"}])
    assert "arguments of store_memory:" in text, "the hint is missing"
    assert "{'" not in text
    assert re.search(r"^2\. invalid_argument: op 'nothing'", text, re.M)


@pytest.mark.long
async def test_text_of_a_large_batch_is_bounded(alice: Agent) -> None:
    stores = [{"op": "store_memory", "content": f"item {number} " + "x" * 200} for number in range(1000)]
    stores[700] = {"op": "store_memory", "content": ""}
    text = await said(alice, "batch_operations", operations=stores)
    assert text.startswith("999 succeeded, 1 failed.")
    assert len(text) < 16_000
    assert len(set(re.findall(ID, text))) > 100
    assert re.search(r"^701\. invalid_argument", text, re.M), "an error is never left out"
    assert "left out" in text
    assert "get_agent_memories" in text
    reads = [{"op": "retrieve_memory", "memory_id": await alice.store("y" * 30_000)}] * 3
    text = await said(alice, "batch_operations", operations=reads)
    assert len(text) < 32_000
    assert text.count("call it alone for the rest") == 3


async def test_store_tells_who_reads_it_and_how_long(alice: Agent) -> None:
    assert re.match(
        rf"Stored \[{ID}\] \(private, until \d{{4}}-\d\d-\d\d\)\.", await said(alice, "store_memory", content="A")
    )
    text = await said(alice, "store_memory", content="B", visibility="public", priority="critical")
    assert "(public, kept forever)" in text


async def test_own_memory_shows_what_can_be_changed(alice: Agent) -> None:
    stored = await ids(
        alice,
        "store_memory",
        content="Tea at five.",
        tags=["tea", "two words"],
        source="Mel",
        context="home",
        metadata={"k": "차"},
    )
    for text in (
        await said(alice, "retrieve_memory", memory_id=stored[0]),
        await said(alice, "get_agent_memories"),
    ):
        for label in (
            "context · ", "source Mel", "context home", "by alice (own, private)", "medium", 'tags tea, "two words"',
            "until 20", "rev 1",
        ):  # fmt: skip
            assert label in text, label
        assert "None" not in text
    assert 'metadata {"k": "차"}' in await said(alice, "retrieve_memory", memory_id=stored[0])
    text = await said(alice, "update_memory", memory_id=stored[0], tags=["five"], expected_rev=1)
    assert "rev 2" in text
    assert "tags five" in text


async def test_hits_name_shared_labels_once(alice: Agent) -> None:
    for number in range(4):
        await alice.store(
            f"The fox number {number} is red.", source="Mel", context="island", memory_type="conversation"
        )
    text = await said(alice, "semantic_search", query="red fox")
    assert text.count("source Mel") == 1
    assert "All: conversation" in text
    assert len(re.findall(rf"^\[{ID}\] \.\d\d", text, re.M)) == 4
    text = await said(alice, "semantic_search", query="red fox", limit=1)
    assert text.startswith("1 memory. ")
    assert "conversation · " in text
    assert "source Mel · context island · by alice (own, private)" in text


async def test_list_goes_on_with_the_cursor_of_its_text(alice: Agent) -> None:
    for number in range(3):
        await alice.store(f"entry {number}", wait=False)
    text = await said(alice, "get_agent_memories", limit=2)
    cursor = re.search(r"cursor=(\S+)", text)
    assert cursor, text
    assert "entry 0" in await said(alice, "get_agent_memories", limit=2, cursor=cursor[1])


async def test_since_is_echoed_as_it_was_understood(alice: Agent) -> None:
    await alice.store("A new fox.", wait=False)
    for tool, arguments in (("semantic_search", {"query": "fox"}), ("get_agent_memories", {})):
        text = await said(alice, tool, since="2020-05-04", **arguments)
        assert "since 2020-05-04T00:00Z" in text, text
    text = await said(alice, "semantic_search", query="fox", since="2020", until="2021-01-01")
    assert "No memories found" in text
    assert "until 2021-01-01T00:00Z" in text
    assert "since 2020-05-04T00:00Z" in await said(alice, "memory_stats", since="2020-05-04")


async def test_refused_delete_names_what_belongs_to_others(alice: Agent, bob: Agent) -> None:
    public, private = await alice.store("Public.", visibility="public"), await alice.store("Private.")
    text = await said(bob, "clear_memory", memory_ids=[public])
    assert "Nothing deleted" in text
    assert f"[{public}] belongs to another agent" in text
    unknown = "01" + "0" * 24
    texts = [await said(bob, "clear_memory", memory_ids=[one]) for one in (private, unknown)]
    assert texts[0].replace(private, "") == texts[1].replace(unknown, "")
    assert "Private." in await said(alice, "retrieve_memory", memory_id=private)
    assert "Public." in await said(alice, "retrieve_memory", memory_id=public)
    own = await bob.store("Mine.")
    assert "Deleted 1 memory." in await said(bob, "clear_memory", memory_ids=[own])


async def test_grant_says_what_it_covers_now(alice: Agent, bob: Agent) -> None:
    await register(alice, "alice")
    await register(bob, "bob")
    text = await said(alice, "share_context_with_agent", target_agent="bob", context="island")
    assert "context island" in text
    assert "0 match now" in text
    await alice.store("On the island.", context="island", wait=False)
    text = await said(alice, "share_context_with_agent", target_agent="bob", tags=["fox"])
    assert "tag fox" in text
    text = await said(bob, "get_shared_context")
    assert "read context island" in text
    assert "read tag fox" in text
    text = await said(alice, "share_context_with_agent", target_agent="bob", context="island")
    assert "1 matches now" in text
    grant = re.search(rf"grant \[?({ID})", text)
    assert grant, text
    assert "ended" in await said(alice, "revoke_shared_context", grant_id=grant[1])


async def test_other_scripts_stay_readable(alice: Agent) -> None:
    await alice.store("첫 번째 결정", source="지민", tags=["결정"], context="회의 하나")
    text = await said(alice, "get_agent_memories")
    assert "\\u" not in text
    for part in ("> 첫 번째 결정", "지민", "결정", "회의 하나"):
        assert part in text


async def test_statistics_are_words(alice: Agent) -> None:
    await alice.store("A fox.", priority="critical", visibility="public")
    text = await said(alice, "memory_stats")
    for part in ("1 memory", "By priority: critical 1", "By visibility: public 1", "By agent: alice 1"):
        assert part in text, text
    assert "{" not in text
    assert "None" not in text


@pytest.mark.parametrize("key", [None, "a2V5"])
async def test_sensitive_is_offered_only_with_a_key(key: str | None) -> None:
    settings = Settings.model_construct(master_key=key and SecretStr(key))
    store = next(tool for tool in tool_groups(Runtime(settings))["Memories"] if tool.name == "store_memory")
    assert ("sensitive" in store.parameters["properties"]) == bool(key)
    told = Secrets(kinds=["token"], action="stored", encryptable=settings.has_master_key)
    assert ("sensitive" in told.line()) == bool(key)
    assert "encryptable" not in told.model_dump()


async def test_similar_memory_of_ones_own_comes_with_what_to_do(alice: Agent, bob: Agent) -> None:
    own = await alice.store("The harbour office opens at nine on weekdays.", visibility="public")
    texts = [
        text_of(await each.raw("store_memory", content="The harbour office opens at nine.")) for each in (alice, bob)
    ]
    (mine,), (others,) = ([line for line in text.split("\n") if f"[{own}]" in line] for text in texts)
    assert mine.endswith("– yours; if it is the same fact, update_memory with this id.")
    assert others.startswith("Similar: ")
    assert "update_memory" not in others
    assert len(mine) < 160
