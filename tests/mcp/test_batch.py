"""Many operations in one call: ordered, isolated and embedded together."""

from __future__ import annotations

import re
from typing import Any

import pytest
from mcp_types import CallToolResult
from support.embedder_fixtures import wait_until
from support.stack import Agent, Refused, Server, text_of

GOOD = [{"op": "store_memory", "content": f"batch item {n}", "context": "batch"} for n in range(490)]


async def test_ten_invalid_stores_among_500_leave_490_in_order(alice: Agent) -> None:
    operations = [*GOOD]
    for position in range(0, 500, 50):
        operations.insert(position, {"op": "store_memory", "content": "", "context": "batch"})
    answer = await alice.call("batch_operations", operations=operations)
    assert (answer["succeeded"], answer["failed"]) == (490, 10)
    assert len(answer["results"]) == 500
    bad = [n for n, result in enumerate(answer["results"]) if not result["ok"]]
    assert bad == list(range(0, 500, 50))
    assert all(answer["results"][n]["error"]["code"] == "invalid_argument" for n in bad)
    listed = await alice.call("get_agent_memories", context="batch", limit=100)
    assert listed["total"] == 490
    assert [memory["seq"] for memory in listed["memories"]] == list(range(490, 390, -1))
    assert listed["memories"][0]["content"] == "batch item 489"
    await wait_until(lambda: _all_embedded(alice), 60)


async def test_operations_of_every_kind_run_together(alice: Agent) -> None:
    stored = await alice.store("The fox is red.")
    answer = await alice.call(
        "batch_operations",
        operations=[
            {"op": "store_memory", "content": "The owl is grey.", "wait": True},
            {"op": "semantic_search", "query": "colour of the owl", "limit": 1},
            {"op": "semantic_search", "query": "colour of the fox", "limit": 1},
            {"op": "update_memory", "memory_id": stored, "tags": ["animal"]},
            {"op": "retrieve_memory", "memory_id": stored},
            {"op": "get_agent_memories", "tags": ["animal"]},
            {"op": "find_similar_memories", "memory_id": stored, "limit": 1},
            {"op": "memory_stats"},
            {"op": "clear_memory", "memory_ids": [stored]},
            {"op": "retrieve_memory", "memory_id": stored},
        ],
    )
    results: list[dict[str, Any]] = answer["results"]
    assert [result["ok"] for result in results] == [True] * 9 + [False]
    assert results[0]["result"]["vector"] == "ready"
    assert results[1]["result"]["hits"][0]["memory"]["content"] == "The owl is grey."
    assert results[2]["result"]["hits"][0]["memory"]["content"] == "The fox is red."
    assert results[4]["result"]["memory"]["tags"] == ["animal"]
    assert results[5]["result"]["total"] == 1
    assert results[8]["result"]["deleted"] == 1
    assert results[9]["error"]["code"] == "not_found"


async def test_cut_text_of_a_change_keeps_its_id_and_asks_for_no_repetition(alice: Agent) -> None:
    await alice.call("register_agent", max_tasks=40)
    for tool, name, arguments in (
        ("distribute_task", "task_id", {"description": "Write a chapter of the handbook.", "assign_to": "alice"}),
        ("store_memory", "memory_id", {"content": "A chapter of the handbook is written."}),
    ):
        operations = [{"op": tool, **arguments, "context" if tool == "store_memory" else "task_type": f"c{n}"}
                      for n in range(20)]  # fmt: skip
        for most in (900, 3000):
            result = await alice.raw("batch_operations", operations=operations, max_tokens=most)
            text = text_of(result)
            assert "call it alone" not in text
            shown = set(re.findall(rf"{name}=(\w+)|\[(\w{{26}})\]", text))
            assert len(shown) >= 20 or "Do not repeat changes" in text, text
    claimed = text_of(await alice.raw("batch_operations", max_tokens=500, operations=[
        {"op": "get_pending_tasks", "limit": 20, "with_memories": 0}]))  # fmt: skip
    assert "do not repeat" in claimed.lower()
    assert "get_pending_tasks shows what you hold" in claimed


async def test_batch_can_stop_at_the_first_error(alice: Agent) -> None:
    answer = await alice.call(
        "batch_operations",
        operations=[
            {"op": "store_memory", "content": "before"},
            {"op": "store_memory", "content": ""},
            {"op": "store_memory", "content": "after"},
        ],
        stop_on_error=True,
    )
    assert [result.get("error", {}).get("code") for result in answer["results"]] == [
        None,
        "invalid_argument",
        "skipped",
    ]
    assert (await alice.call("get_agent_memories"))["total"] == 1


@pytest.mark.parametrize(
    "operation",
    [{}, {"op": "nothing"}, {"op": 5}, {"op": "batch_operations", "operations": []}, {"op": "store_memory"}],
)
async def test_invalid_operation_is_refused_alone(alice: Agent, operation: dict[str, Any]) -> None:
    answer = await alice.call("batch_operations", operations=[operation, {"op": "store_memory", "content": "fine"}])
    assert [result["ok"] for result in answer["results"]] == [False, True]
    assert answer["results"][0]["error"]["code"] == "invalid_argument"


async def test_oversized_batch_is_refused_whole(alice: Agent) -> None:
    with pytest.raises(Refused) as refused:
        await alice.call("batch_operations", operations=[{"op": "gpu_status"}] * 1001)
    assert refused.value.code == "invalid_argument"


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_bulk_delete_in_a_batch_needs_confirmation(server: Server, namespace: str, mode: str) -> None:
    async with server.agent("alice", namespace, mode) as alice:
        for number in range(2):
            await alice.store(f"keep {number}", tags=["keep"], wait=False)
        answer = await alice.call("batch_operations", operations=[{"op": "clear_memory", "tags": ["keep"]}])
        assert answer["results"][0]["error"]["code"] == "confirmation_needed"
        confirmed = [{"op": "clear_memory", "tags": ["keep"], "confirm": True}]
        assert (await alice.call("batch_operations", operations=confirmed))["results"][0]["result"]["deleted"] == 2


async def test_progress_is_reported(alice: Agent) -> None:
    seen: list[tuple[float, float | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total))

    operations = [{"op": "store_memory", "content": f"step {n}"} for n in range(40)]
    result = await alice.client.call_tool("batch_operations", {"operations": operations}, progress_callback=note)
    assert isinstance(result, CallToolResult)
    assert seen[-1] == (40, 40)
    assert [progress for progress, _ in seen] == sorted(progress for progress, _ in seen)


async def test_known_texts_are_not_embedded_again(alice: Agent) -> None:
    async def embedded() -> int:
        return (await alice.call("gpu_status"))["sidecars"][0]["texts_total"]

    await alice.store("Embedded once.", source="Ann")
    before = (await alice.call("memory_stats"))["cache"]
    again = await alice.call("store_memory", content="Embedded once.", source="Ann", wait=False)
    assert again["vector"] == "ready"
    after = (await alice.call("memory_stats"))["cache"]
    assert after["process_hits"] == before["process_hits"] + 1
    assert after["misses"] == before["misses"]
    assert await embedded() > 0


async def _all_embedded(agent: Agent) -> bool:
    return (await agent.call("memory_stats"))["vector_backlog"] == 0
