"""Numbers, cursors and statistics reveal nothing about the private activity of others."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio
from support.embedder_fixtures import wait_until
from support.in_process import ADMIN, Direct, InProcess
from support.redis_users import SERVER
from support.stack import Refused, Stack, serving

from memory_core.records.keys import Keys

CROWD = 40
TEXT = "Scrape the barnacles off the hull."


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def in_process(stack: Stack) -> AsyncGenerator[InProcess]:
    """A server with authentication on."""
    async with serving(stack.redis.url_of(SERVER), auth={"mode": "tokens"}, embed_wait_seconds=15.0) as server:
        yield InProcess.over(server)


@pytest_asyncio.fixture(loop_scope="session")
async def team(in_process: InProcess, namespace: str) -> dict[str, Direct]:
    """Registered agents: alice, and two others with private activity."""
    agents = {name: await in_process.agent(name, namespace) for name in ("alice", "bob", "carol")}
    for agent in agents.values():
        await agent.call("register_agent", max_tasks=100, heartbeat_seconds=3600)
    return agents


async def _clock_has_passed(stack: Stack, milliseconds: int) -> None:
    async def passed() -> bool:
        seconds, microseconds = await stack.client.time()
        return seconds * 1000 + microseconds // 1000 > milliseconds + 2

    await wait_until(passed)


async def test_event_cursor_does_not_reveal_others_activity(
    team: dict[str, Direct], stack: Stack, namespace: str
) -> None:
    before = (await team["alice"].call("wait_for_events", timeout_seconds=0))["cursor"]
    await team["bob"].call("store_memory", content="A secret.", wait=False)
    ((entry, _),) = await stack.client.xrevrange(Keys(namespace).events, count=1)
    await _clock_has_passed(stack, int(entry.partition(b"-")[0]))
    for cursor in (before, None):
        answer = await team["alice"].call(
            "wait_for_events", timeout_seconds=0, **({"cursor": cursor} if cursor else {})
        )
        assert answer["events"] == []
        assert answer["cursor"] != entry.decode()
        assert answer["cursor"].endswith("-0")


async def test_event_after_a_clock_cursor_is_delivered_once(team: dict[str, Direct]) -> None:
    cursor = (await team["alice"].call("wait_for_events", timeout_seconds=0))["cursor"]
    received: list[str] = []
    stored: list[str] = []
    for number in range(10):
        answer = await team["bob"].call("store_memory", content=f"News {number}.", visibility="public", wait=False)
        stored.append(answer["memory_id"])
        await team["carol"].call("store_memory", content=f"A secret {number}.", wait=False)
        page = await team["alice"].call("wait_for_events", timeout_seconds=0, cursor=cursor, kinds=["memory"])
        received += [event["id"] for event in page["events"]]
        cursor = page["cursor"]
    assert received == stored


async def test_shared_context_cursor_does_not_reveal_others_activity(
    team: dict[str, Direct], stack: Stack, namespace: str
) -> None:
    await team["bob"].call("store_memory", content="A secret.", wait=False)
    last = int(await stack.client.hget(Keys(namespace).counters, "clock"))
    await _clock_has_passed(stack, last // 1000)
    cursor = (await team["alice"].call("get_shared_context"))["next_cursor"].partition(".")[2]
    _, *places = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    assert all(in_process * 1_000_000 > last + 1 for in_process in places)


async def test_lease_number_does_not_count_others_leases(team: dict[str, Direct]) -> None:
    numbers: list[int] = []
    for _ in range(2):
        await team["alice"].call("distribute_task", description=TEXT, assign_to="alice")
        (task,) = (await team["alice"].call("get_pending_tasks", with_memories=0))["tasks"]
        numbers.append(int(task["lease_token"].split(".")[1]))
    assert numbers[0] < numbers[1]
    assert all(abs(number / 1_000_000 - time.time()) < 3600 for number in numbers)


async def test_others_tasks_do_not_displace_an_agents_similar_tasks(team: dict[str, Direct]) -> None:
    first = await team["alice"].call("distribute_task", description=TEXT, assign_to="alice")
    crowd = [{"op": "distribute_task", "description": TEXT, "assign_to": "carol"} for _ in range(CROWD)]
    assert (await team["bob"].call("batch_operations", operations=crowd))["failed"] == 0
    again = await team["alice"].call("distribute_task", description=TEXT, assign_to="alice")
    assert [task["task_id"] for task in again["similar_tasks"]] == [first["task_id"]]


async def test_figures_about_all_agents_need_admin(
    in_process: InProcess, team: dict[str, Direct], namespace: str
) -> None:
    await team["bob"].call("store_memory", content="A secret.")
    await team["bob"].call("semantic_search", query="secret")
    admin = await in_process.agent("root", namespace, ADMIN)
    busy = {"queue_depth", "texts_total", "texts_per_second", "asks_total", "utilisation", "memory_used"}
    for agent, sees in ((team["alice"], False), (admin, True)):
        stats = await agent.call("memory_stats")
        assert (len(stats["agents"]) == len(team)) is sees
        assert ("failures" in stats["index"]) is sees
        assert (stats["search_latency_ms"]["count"] > 0) is sees
        status = await agent.call("gpu_status")
        assert ("queue_depth" in status) is sees
        assert bool(busy & set(status["sidecars"][0])) is sees
    assert [figures["agent"] for figures in (await team["alice"].call("memory_stats"))["agents"]] == ["alice"]
    assert (await team["bob"].call("memory_stats"))["search_latency_ms"]["count"] == 1


async def test_admin_clears_the_named_agents_memories_not_its_own(
    in_process: InProcess, team: dict[str, Direct], namespace: str
) -> None:
    admin = await in_process.agent("root", namespace, ADMIN)
    for agent in (admin, team["alice"], team["bob"]):
        await agent.call("store_memory", content="Kept or not.", tags=["old"], wait=False)
    with pytest.raises(Refused, match="one at a time"):
        await admin.call("clear_memory", agent_ids=["alice", "bob"], confirm=True)
    assert (await admin.call("clear_memory", agent_ids=["alice"], tags=["old"]))["deleted"] == 1
    totals = [(await agent.call("get_agent_memories"))["total"] for agent in (admin, team["alice"], team["bob"])]
    assert totals == [1, 0, 1]


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("register_agent", {"context_window": "9" * 200}),
        ("distribute_task", {"description": TEXT, "min_context_window": 10**30}),
        ("batch_operations", {"operations": '[{"op":"semantic_search","query":"\\ud800"}]'}),
        ("update_agent_heartbeat", {"lease_tokens": '["\\ud800"]'}),
        ("complete_task", {"task_id": "x", "lease_token": "\ud800"}),
        ("store_memory", {"content": "x", "metadata": '{"a":"\\udfff"}'}),
    ],
)
async def test_values_redis_cannot_store_are_refused_by_type(
    team: dict[str, Direct], tool: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(Refused) as refusal:
        await team["alice"].call(tool, **arguments)
    assert refusal.value.code == "invalid_argument"
