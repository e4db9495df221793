"""Quotas limit each agent alone, and a store over the limit is refused before anything is written."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import cast

import pytest
import pytest_asyncio
from support.redis_users import SERVER
from support.sharing_helpers import refusal
from support.stack import Agent, Server, Stack, in_own_task, serving

from memory_core.errors import QuotaExceeded
from memory_core.records.scope import Principal
from memory_core.settings.settings import Settings
from memory_server.engine.namespaces import Namespaces
from memory_server.memories import quotas as quotas_module
from memory_server.memories.quotas import Quotas, Usage

LONG = "".join(f"Sentence {number} tells of the quiet harbour and its many boats. " for number in range(120))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tight(stack: Stack) -> AsyncGenerator[Server]:
    """A server with small quotas, on the session's Redis."""
    limits = {"memories": 5, "pieces": 12, "open_tasks": 2}
    async with in_own_task(serving(stack.redis.url_of(SERVER), quotas=limits)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def ann(tight: Server, namespace: str) -> AsyncGenerator[Agent]:
    """An agent of that server."""
    async with in_own_task(tight.agent("ann", namespace)) as agent:
        yield agent


async def _fill(agent: Agent, number: int = 5) -> list[str]:
    return [await agent.store(f"Note {index}.", wait=False) for index in range(number)]


async def test_refusal_over_the_quota_names_the_limit_and_the_remedy(ann: Agent) -> None:
    stored = await _fill(ann)
    code, text = await refusal(ann, "store_memory", content="One more.", wait=False)
    assert (code, "5" in text, "clear_memory" in text) == ("quota_exceeded", True, True)
    assert (await ann.call("get_agent_memories"))["total"] == 5
    await ann.call("clear_memory", memory_ids=[stored[0]])
    await ann.store("One more.", wait=False)
    assert (await refusal(ann, "store_memory", content="Another.", wait=False))[0] == "quota_exceeded"


async def test_quota_counts_only_the_agents_own_memories(tight: Server, ann: Agent, namespace: str) -> None:
    async with tight.agent("bob", namespace) as bob:
        await _fill(bob)
        await _fill(ann)
        assert (await refusal(ann, "store_memory", content="x", wait=False))[0] == "quota_exceeded"
        assert (await refusal(bob, "store_memory", content="x", wait=False))[0] == "quota_exceeded"


async def test_batch_stores_up_to_the_limit_and_reports_the_rest(ann: Agent) -> None:
    operations = [{"op": "store_memory", "content": f"Note {number}."} for number in range(8)]
    answer = await ann.call("batch_operations", operations=operations)
    assert [result["ok"] for result in answer["results"]] == [True] * 5 + [False] * 3
    assert {result["error"]["code"] for result in answer["results"][5:]} == {"quota_exceeded"}


async def test_long_content_counts_by_its_chunks_in_stores_and_updates(ann: Agent) -> None:
    assert (await refusal(ann, "store_memory", content=LONG * 3, wait=False))[0] == "quota_exceeded"
    first = await ann.store(LONG, wait=False)
    pieces = (await ann.call("retrieve_memory", memory_id=first))["memory"]["pieces"]
    assert 6 < pieces <= 12
    short = await ann.store("Short.", wait=False)
    assert (await refusal(ann, "update_memory", memory_id=short, content=LONG))[0] == "quota_exceeded"
    await ann.call("update_memory", memory_id=first, content="Short now.")
    await ann.call("clear_memory", memory_ids=[first])
    await ann.call("update_memory", memory_id=short, content=LONG)


async def test_repeated_store_is_answered_over_the_quota(ann: Agent) -> None:
    first = await ann.store("Keyed.", idempotency_key="k1", wait=False)
    await _fill(ann, 4)
    again = await ann.call("store_memory", content="Keyed.", idempotency_key="k1", wait=False)
    assert (again["memory_id"], again["replayed"]) == (first, True)
    code, _ = await refusal(ann, "store_memory", content="New.", idempotency_key="k2", wait=False)
    assert code == "quota_exceeded"


async def test_open_tasks_count_for_their_submitter(tight: Server, ann: Agent, namespace: str) -> None:
    first = (await ann.call("distribute_task", description="Sweep the deck."))["task_id"]
    await ann.call("distribute_task", description="Mend the sail.")
    code, text = await refusal(ann, "distribute_task", description="Paint the mast.")
    assert (code, "2 open tasks" in text) == ("quota_exceeded", True)
    async with tight.agent("bob", namespace) as bob:
        await bob.call("distribute_task", description="Cook the fish.")
    await ann.call("cancel_task", task_id=first)
    await ann.call("distribute_task", description="Paint the mast.")
    assert (await refusal(ann, "distribute_task", description="Row."))[0] == "quota_exceeded"


class _Counted(Quotas):
    """Quotas with a fixed count instead of Redis's. Counts how often it is asked."""

    def __init__(self, most: int, memories: int) -> None:
        settings = Settings.load(quotas={"memories": most, "pieces": 0})
        super().__init__(settings, cast(Namespaces, None))
        self.memories = memories
        self.asked = 0

    async def count(self, principal: Principal) -> Usage:
        self.asked += 1
        return Usage(self.memories, self.memories)


OWNER = Principal("team", "ann", owner="owner")


async def test_far_below_the_limit_many_stores_share_one_count() -> None:
    quotas = _Counted(most=1_000_000, memories=10)
    for _ in range(1000):
        await quotas.take(OWNER, 1, 1)
    assert quotas.asked == 1


async def test_count_near_the_limit_is_cached_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(quotas_module.time, "monotonic", lambda: clock[0])
    quotas = _Counted(most=12, memories=10)
    for _ in range(2):
        await quotas.take(OWNER, 1, 1)
    with pytest.raises(QuotaExceeded):
        await quotas.take(OWNER, 1, 1)
    assert quotas.asked == 1
    clock[0] += 1.1
    await quotas.take(OWNER, 1, 1)
    assert quotas.asked == 2


async def test_disabled_quotas_count_nothing() -> None:
    quotas = _Counted(most=0, memories=10**9)
    await quotas.take(OWNER, 1, 1)
    assert quotas.asked == 0
