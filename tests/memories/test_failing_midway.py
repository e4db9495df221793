"""Redis fails during an operation, or clocks disagree: the answer never hides it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio
from chaos.memories.proxy import NetworkFault, Proxy
from support.redis_users import PASSWORDS, SERVER
from support.stack import MASTER_KEY, Agent, Refused, Stack, in_own_task, serving

from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.settings.settings import VectorStoreSettings
from memory_core.store.index import coverage, ensure_namespace
from memory_server.memories.clear import DELETED_AT_ONCE

TWO_HOURS = 7200.0


@pytest_asyncio.fixture(loop_scope="session")
async def proxy(stack: Stack) -> AsyncGenerator[Proxy]:
    """A proxy between a second server and the session's Redis."""
    async with in_own_task(Proxy(stack.redis.path)) as between:
        yield between


@pytest_asyncio.fixture(loop_scope="session")
async def carol(proxy: Proxy, namespace: str) -> AsyncGenerator[Agent]:
    """An agent of that server."""
    url = f"redis://{SERVER}:{PASSWORDS[SERVER]}@127.0.0.1:{proxy.port}/0"
    async with (
        in_own_task(serving(url, master_key=MASTER_KEY)) as server,
        in_own_task(server.agent("carol", namespace)) as agent,
    ):
        yield agent
        proxy.last_of = b""
        proxy.begin(NetworkFault.NONE)


async def test_update_that_cannot_be_read_back_reports_outcome_unknown(carol: Agent, proxy: Proxy) -> None:
    memory_id = await carol.store("The ferry leaves at noon.", wait=False)
    proxy.last_of = b"rm1_update"
    with pytest.raises(Refused) as refused:
        await carol.call("update_memory", memory_id=memory_id, content="The ferry leaves at one.")
    assert refused.value.code == "outcome_unknown"
    proxy.last_of = b""
    proxy.begin(NetworkFault.NONE)
    assert (await carol.call("retrieve_memory", memory_id=memory_id))["memory"]["rev"] == 2


async def test_clear_that_fails_midway_reports_how_many_it_deleted(carol: Agent, proxy: Proxy) -> None:
    stores = [{"op": "store_memory", "content": f"draft {number}", "tags": ["draft"]} for number in range(201)]
    assert (await carol.call("batch_operations", operations=stores))["succeeded"] == 201
    proxy.last_of = b"rm1_delete"
    answer = await carol.call("clear_memory", tags=["draft"], confirm=True)
    assert (answer["matched"], answer["deleted"], answer["partial"]) == (201, DELETED_AT_ONCE, True)
    assert "midway" in answer["reason"]


@pytest.mark.parametrize("wrong", [TWO_HOURS, -TWO_HOURS], ids=["fast", "slow"])
async def test_server_with_a_wrong_clock_uses_redis_time(
    alice: Agent, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong)
    hour = await alice.store("Gone in an hour.", ttl_seconds=3600, wait=False)
    assert (await alice.call("retrieve_memory", memory_id=hour))["memory"]["content"] == "Gone in an hour."
    assert [memory["memory_id"] for memory in (await alice.call("get_agent_memories"))["memories"]] == [hour]
    assert await alice.search("hour", mode="keyword") == ["Gone in an hour."]
    assert (await alice.call("clear_memory", memory_types=["context"], confirm=True))["deleted"] == 1


def test_redis_time_changes_only_when_an_answer_contradicts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_time, "_ahead", None)
    assert abs(redis_time.now() - time.time()) < 1
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    redis_time.hear(5000.0, 990.0, 990.5)
    assert redis_time.now() == 5010.0
    redis_time.hear(5001.0, 990.5, 992.5)
    assert redis_time.now() == 5010.0
    redis_time.hear(9000.0, 999.0, 1000.0)
    assert redis_time.now() == 9000.0


async def test_index_dropped_during_its_creation_is_created_again(stack: Stack, namespace: str) -> None:
    names, settings = Keys(namespace), VectorStoreSettings()

    class Dropping:
        """A Redis client that drops the index once, before its alias is added."""

        dropped = False

        def __getattr__(self, name: str) -> Any:
            return getattr(stack.client, name)

        def ft(self, index: str) -> Any:
            search = stack.client.ft(index)
            add = search.aliasadd

            async def aliasadd(alias: str) -> Any:
                if not self.dropped:
                    self.dropped = True
                    await stack.client.execute_command("FT.DROPINDEX", index)
                return await add(alias)

            search.aliasadd = aliasadd
            return search

    await ensure_namespace(Dropping(), namespace, settings)
    assert await coverage(stack.client, names.index_alias) is not None
