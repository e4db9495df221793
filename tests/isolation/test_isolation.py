"""Readers find a memory in every way of reading; for all others it does not exist and changes no score."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from mcp.shared.exceptions import MCPError
from support.stack import Agent, Refused, Server, Stack

from memory_core.records.keys import GROUP, Keys
from memory_core.records.vectors import Matrix
from memory_core.store import functions

SECRET = "The treasure chest is buried under the old lighthouse."
UNKNOWN = "01arz3ndektsv4rrffq69g5fav"
DIMENSION = 384
_ULID = re.compile(r"[0-9a-hjkmnp-tv-z]{26}")
_NOISE = {"took_ms", "search_latency_ms", "embedding_latency_ms", "next_cursor", "access_count", "last_access", "names"}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def _ids(memories: list[dict[str, Any]]) -> list[str]:
    return [memory["memory_id"] for memory in memories]


def _found(answer: dict[str, Any]) -> list[str]:
    return _ids([hit["memory"] for hit in answer["hits"]])


async def _resource(agent: Agent, memory_id: str) -> str:
    try:
        return (await agent.client.read_resource(f"memory://{memory_id}")).model_dump_json()
    except MCPError as error:
        return f"refused: {error.error.model_dump_json()}"


async def _visibility_by_read(reader: Agent, memory_id: str) -> dict[str, bool]:
    """Return, for each way of reading, whether it shows a memory of alice's."""
    listed = await reader.call("get_agent_memories", agent_id="alice")
    filtered = await reader.call("get_agent_memories", agent_ids=["alice"], tags=["gold"], context="island")
    stats = await reader.call("memory_stats", agent_id="alice")
    all_stats = await reader.call("memory_stats")
    visible = {
        "retrieve": not (await reader.raw("retrieve_memory", memory_id=memory_id)).is_error,
        "resource": "lighthouse" in await _resource(reader, memory_id),
        "list": memory_id in _ids(listed["memories"]),
        "list total": listed["total"] == 1,
        "filtered list": memory_id in _ids(filtered["memories"]),
        "filtered total": filtered["total"] == 1,
        "statistics": stats["total"] == 1 and sum(stats["by_type"].values()) == 1,
        "statistics of all": all_stats["by_agent"] == {"alice": 1} and all_stats["total"] == 1,
        "similar to it": not (await reader.raw("find_similar_memories", memory_id=memory_id)).is_error,
    }
    for mode in ("hybrid", "vector", "keyword"):
        answer = await reader.call("semantic_search", query="treasure under the lighthouse", mode=mode)
        visible[f"{mode} search"] = _found(answer) == [memory_id]
    probe = await reader.call("store_memory", content=f"I know: {SECRET}")
    visible["similar advice"] = memory_id in _ids(probe["similar"])
    for exact in (True, False):
        answer = await reader.call("find_similar_memories", memory_id=probe["memory_id"], exact=exact)
        visible[f"find similar, exact {exact}"] = memory_id in _found(answer)
    return visible


@pytest.mark.parametrize("visibility", ["private", "shared", "public"])
@pytest.mark.parametrize("reader", ["the owner", "a stranger", "a namesake elsewhere", "a stranger elsewhere"])
async def test_memory_is_visible_in_every_read_or_in_none(
    server: Server, namespace: str, alice: Agent, visibility: str, reader: str
) -> None:
    memory_id = await alice.store(SECRET, visibility=visibility, tags=["gold"], context="island")
    name = "alice" if reader in {"the owner", "a namesake elsewhere"} else "bob"
    where = f"{namespace}-elsewhere" if reader.endswith("elsewhere") else namespace
    allowed = reader == "the owner" or (reader == "a stranger" and visibility == "public")
    async with server.agent(name, where) as agent:
        visible = await _visibility_by_read(agent, memory_id)
    assert visible == dict.fromkeys(visible, allowed)


async def test_only_the_owner_learns_of_an_exact_duplicate(alice: Agent, bob: Agent) -> None:
    first = await alice.store(SECRET, visibility="public")
    assert "duplicate_of" not in await bob.call("store_memory", content=SECRET)
    assert (await alice.call("store_memory", content=SECRET))["duplicate_of"] == first


@pytest.mark.parametrize("visibility", ["private", "shared"])
async def test_forbidden_and_unknown_ids_get_identical_answers(alice: Agent, bob: Agent, visibility: str) -> None:
    forbidden = await alice.store(SECRET, visibility=visibility)
    await bob.store("Something of his own.")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("retrieve_memory", {}),
        ("find_similar_memories", {}),
        ("find_similar_memories", {"exact": True, "limit": 5}),
        ("update_memory", {"content": "mine now"}),
        ("update_memory", {"visibility": "public", "expected_rev": 1}),
        ("update_memory", {"tags": ["x"], "expected_rev": 7}),
        ("update_memory", {"content": ""}),
    ]
    for tool, arguments in calls:
        answers = [
            (await bob.raw(tool, memory_id=memory_id, **arguments)).model_dump_json().replace(memory_id, "ID")
            for memory_id in (forbidden, UNKNOWN)
        ]
        assert answers[0] == answers[1], tool
    for arguments in ({}, {"dry_run": True}, {"confirm": True}):
        answers = [
            (await bob.raw("clear_memory", memory_ids=[memory_id], **arguments)).model_dump_json()
            for memory_id in (forbidden, UNKNOWN)
        ]
        assert answers[0] == answers[1]
        assert '"matched":0' in answers[0]
    resources = [(await _resource(bob, memory_id)).replace(memory_id, "ID") for memory_id in (forbidden, UNKNOWN)]
    assert resources[0] == resources[1]
    assert (await alice.call("retrieve_memory", memory_id=forbidden))["memory"]["rev"] == 1


async def test_unknown_invalid_and_foreign_names_get_identical_answers(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    await alice.store(SECRET)
    async with server.agent("nobody", namespace) as nobody:
        await nobody.store("Even an agent of this name may speak.", visibility="public")
    for tool in ("get_agent_memories", "memory_stats"):
        seen: set[str] = set()
        for name in ("alice", "never-heard-of", "Not A Name", "} | @owner:{alice}", "*", "-"):
            answer = await bob.call(tool, agent_id=name)
            kept = {field: value for field, value in answer.items() if field not in _NOISE}
            seen.add(json.dumps(kept, sort_keys=True))
        assert len(seen) == 1, tool


SUBJECTS = ("boats in the harbour", "the launch plan", "a broken build", "tabs and spaces", "the summer menu")
SPEAKERS = ("Mel", "Ana", None)


async def _script(alice: Agent) -> list[Any]:
    """Call everything that alice can call and return all answers."""
    answers: list[Any] = []
    stored: list[str] = []
    for number in range(40):
        subject, speaker = SUBJECTS[number % 5], SPEAKERS[number % 3]
        arguments: dict[str, Any] = {"tags": [f"tag{number % 4}"], "context": f"thread{number % 3}"}
        if speaker:
            arguments["source"] = speaker
        content = f"Note {number // 2} on {subject}: item {number % 7} of the list."
        answers.append(await alice.call("store_memory", content=content, occurred_at=number * 86_400, **arguments))
        stored.append(answers[-1]["memory_id"])
    for query in ("boats in the harbour", "launch", "item 3", "what does Mel say of tabs", "zebra", "list"):
        for mode in ("hybrid", "vector", "keyword"):
            answers.append(await alice.call("semantic_search", query=query, mode=mode, limit=20))
    answers += [
        await alice.call("semantic_search", query="menu", tags=["tag1"], rerank=True, recency_weight=0.3),
        await alice.call("semantic_search", query="build", context="thread2", min_score=0.2, max_tokens=60),
        await alice.call("find_similar_memories", memory_id=stored[3]),
        await alice.call("find_similar_memories", memory_id=stored[4], exact=True, limit=40),
        await alice.call("get_agent_memories", limit=7),
        await alice.call("get_agent_memories", tags=["tag1", "tag2"], source="Mel", limit=50),
        await alice.call("update_memory", memory_id=stored[0], content="Note on the lighthouse.", tags=["tag9"]),
        await alice.call("semantic_search", query="lighthouse"),
        await alice.call("retrieve_memory", memory_id=stored[0]),
        await alice.call("clear_memory", tags=["tag3"], dry_run=True),
        await alice.call("clear_memory", memory_ids=[stored[1]]),
        await alice.call("clear_memory", context="thread1", confirm=True),
        await alice.call("semantic_search", query="harbour launch build"),
        await alice.call("memory_stats"),
    ]
    return answers


def _bytes_of(answers: list[Any], namespace: str) -> list[str]:
    """Serialize answers without times and durations, and with ids numbered by first appearance."""
    order: dict[str, str] = {}
    lines: list[str] = []
    for answer in answers:
        kept = {name: value for name, value in answer.items() if name not in _NOISE}
        text = _MOMENT.sub("T", json.dumps(kept, sort_keys=True, ensure_ascii=False).replace(namespace, "NS"))
        lines.append(_ULID.sub(lambda match: order.setdefault(match.group(), f"#{len(order)}"), text))
    return lines


async def test_private_memories_of_others_change_no_byte_of_any_answer(server: Server, namespace: str) -> None:
    texts: list[list[str]] = []
    for twin in ("alone", "among"):
        where = f"{namespace}-{twin}"
        async with server.agent("alice", where) as alice, server.agent("bob", where) as bob:
            if twin == "among":
                for number in range(20):
                    await bob.store(
                        f"Note {number} on {SUBJECTS[number % 5]}: boats launch harbour list list zebra.",
                        tags=[f"tag{number % 4}", "pub"],
                        context=f"thread{number % 3}",
                        source="Mel",
                        visibility="shared" if number % 2 else "private",
                    )
            texts.append(_bytes_of(await _script(alice), where))
    assert texts[0] == texts[1]


async def test_labels_resembling_scope_tokens_grant_nothing(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    hers = await alice.store(SECRET, tags=["gold"], context="island")
    owner = (await stack.client.hget(Keys(namespace).agent("alice"), "owner")).decode()
    scope = (await stack.client.hget(Keys(namespace).memory(hers), "scope")).decode().split("\x1f")
    tokens = [*scope, f"o:{owner}", f"i:{hers}", "pub", "*", f"x|o:{owner}", f"}} @scope:{{o:{owner}}}", "gold"]
    his = [await bob.store("Mine alone.", tags=[token], context=token, source=token, wait=False) for token in tokens]
    for token in ("a\x1fpub", f"a\x1fo:{owner}"):
        with pytest.raises(Refused):
            await bob.store("Smuggled.", tags=[token])
    for token in tokens:
        for field in ("tags", "context", "source"):
            seen = (await bob.call("get_agent_memories", agent_ids=["alice", "bob"], **{field: token}))["memories"]
            assert hers not in _ids(seen)
            listed = await alice.call("get_agent_memories", agent_ids=["alice", "bob"], **{field: token})
            assert set(_ids(listed["memories"])) <= {hers}
    for memory_id in his:
        assert (await alice.raw("retrieve_memory", memory_id=memory_id)).is_error
    assert (await alice.call("memory_stats"))["total"] == 1
    assert set(await alice.search("mine alone treasure")) == {SECRET}
    assert SECRET not in await bob.search("treasure under the lighthouse")


async def test_invalid_vectors_do_not_affect_searches_of_others(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    await alice.store("Ships sail at dawn.")
    await alice.store("The bakery opens at six.")
    before = await alice.call("semantic_search", query="when do ships leave", mode="vector")
    for poison in ("nan", "inf", "-inf", "1e400", 0.0, 1e-40):
        with pytest.raises(Refused):
            await bob.store("Poison.", memory_type="embedding", visibility="public", vector=[poison] * DIMENSION)
    target = await bob.store("An embedding.", memory_type="embedding", visibility="public", wait=False)
    keys = Keys(namespace)
    for value in (np.nan, np.inf, 0.0, 1e30):
        vector: Matrix = np.full(DIMENSION, value, dtype=np.float32)
        assert await _commit(stack, keys, target, vector) == ["bad_vector"]
    await bob.call("clear_memory", memory_ids=[target])
    after = await alice.call("semantic_search", query="when do ships leave", mode="vector")
    assert [(hit["memory"]["content"], hit["score"]) for hit in after["hits"]] == [
        (hit["memory"]["content"], hit["score"]) for hit in before["hits"]
    ]
    assert all(0 <= hit["score"] <= 1 for hit in after["hits"])


async def _commit(stack: Stack, keys: Keys, memory_id: str, vector: Matrix) -> list[str]:
    """Commit a vector as a sidecar does."""
    digest = (await stack.client.hget(keys.memory(memory_id), "hash")).decode()
    model = "all-MiniLM-L6-v2"
    item = {
        "id": memory_id, "piece": 0, "rev": 1, "hash": digest, "bytes": vector.astype("<f4").tobytes(),
        "dimension": DIMENSION, "entry": "0-1",
    }  # fmt: skip
    names = [keys.jobs(model), keys.events, keys.memory(memory_id)]
    answer = await functions.call(stack.client, "rm1_commit", names, items=[item], model=model, group=GROUP)
    return answer["verdicts"]


async def test_reading_an_empty_namespace_creates_no_keys(server: Server, stack: Stack) -> None:
    async with server.agent("alice", "never-written") as reader:
        assert await reader.search("anything") == []
        assert (await reader.call("get_agent_memories"))["total"] == 0
    assert not await stack.client.exists(Keys("never-written").meta)
    assert Keys("never-written").index().encode() not in await stack.client.execute_command("FT._LIST")
