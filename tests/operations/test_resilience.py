"""What callers see while parts are down, and that everything recovers without a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator

import httpx2
import pytest
import pytest_asyncio
from mcp import Client as McpClient
from support.embedder_fixtures import wait_until
from support.stack import Agent, Refused, Stack, in_own_task, sidecar_is_ready, whole_stack

from memory_core.records.keys import Keys
from memory_embedder.engines.weights import DEFAULT_MODEL

NAMESPACE = "frail"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def frail(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stack]:
    """A stack for this module, which tests break."""
    async with whole_stack(tmp_path_factory.mktemp("frail"), "--lease", "1", embed_wait_seconds=1.0) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def agent(frail: Stack) -> AsyncGenerator[Agent]:
    """An agent of the frail stack, which is repaired before each test."""
    async with in_own_task(frail.server.agent("alice", NAMESPACE)) as connected:
        await wait_until(lambda: is_ready(frail))
        yield connected


async def is_ready(stack: Stack) -> bool:
    """Whether the server reports ready."""
    async with httpx2.AsyncClient() as client:
        return (await client.get(f"{stack.server.url}/readyz")).status_code == 200


async def all_vectors_ready(agent: Agent) -> bool:
    """Whether no memory waits for its vector."""
    return (await agent.call("memory_stats"))["vector_backlog"] == 0


@pytest.mark.long
async def test_keyword_search_works_without_a_sidecar_and_reports_partial(frail: Stack, agent: Agent) -> None:
    await agent.store("The lantern hangs in the boathouse.")
    frail.sidecar.kill()
    answer = await agent.call("semantic_search", query="lantern")
    assert answer["hits"][0]["memory"]["content"] == "The lantern hangs in the boathouse."
    assert answer["partial"]
    assert "by words only" in answer["reason"]
    with pytest.raises(Refused) as refused:
        await agent.call("semantic_search", query="lantern", mode="vector")
    assert refused.value.code == "embedding_unavailable"
    stored = await agent.call("store_memory", content="Stored while nobody embeds.")
    assert stored["vector"] == "pending"
    await wait_until(lambda: _status_is_partial(agent))

    frail.sidecar.start()
    await wait_until(lambda: all_vectors_ready(agent))
    assert await agent.search("kept when no one made vectors", mode="vector", limit=1) == [
        "Stored while nobody embeds."
    ]


async def _status_is_partial(agent: Agent) -> bool:
    return (await agent.call("gpu_status"))["partial"]


@pytest.mark.long
async def test_sidecar_killed_mid_batch_leaves_no_memory_without_a_vector(frail: Stack, agent: Agent) -> None:
    await asyncio.gather(*(agent.store(f"bulk item number {n} " * 20, wait=False) for n in range(150)))
    frail.sidecar.kill()
    frail.sidecar.start()
    await wait_until(lambda: all_vectors_ready(agent))
    assert int(await frail.client.xlen(Keys(NAMESPACE).jobs(DEFAULT_MODEL))) == 0


async def test_killed_redis_loses_no_acknowledged_write_and_errors_are_typed(frail: Stack, agent: Agent) -> None:
    acknowledged = [await agent.store(f"promise {n}", wait=False) for n in range(20)]
    frail.redis.kill()
    with pytest.raises(Refused) as refused:
        await agent.call("semantic_search", query="promise")
    assert refused.value.code == "store_unavailable"
    with pytest.raises(Refused) as refused:
        await agent.call("clear_memory", memory_ids=acknowledged[:1])
    assert refused.value.code in {"store_unavailable", "outcome_unknown"}
    frail.redis.start()
    await wait_until(lambda: is_ready(frail))
    for memory_id in acknowledged:
        assert (await agent.call("retrieve_memory", memory_id=memory_id))["memory"]["content"].startswith("promise")
    await wait_until(lambda: all_vectors_ready(agent))
    answer = await agent.call("semantic_search", query="promise 7", limit=1)
    assert answer["hits"][0]["memory"]["content"] == "promise 7"


async def test_store_sent_during_a_redis_restart_is_stored_once(frail: Stack, agent: Agent) -> None:
    frail.redis.kill()
    pending = asyncio.create_task(agent.store("I arrived during the storm.", wait=False))
    await asyncio.sleep(0)
    frail.redis.start()
    memory_id = await pending
    await wait_until(lambda: is_ready(frail))
    listed = await agent.call("get_agent_memories", limit=1)
    assert listed["memories"][0]["memory_id"] == memory_id
    assert await agent.search("storm", mode="keyword") == ["I arrived during the storm."]


async def test_dropped_index_is_rebuilt_and_answers_are_partial_until_then(frail: Stack, agent: Agent) -> None:
    await agent.store("The heron stands in the reeds.")
    await frail.client.execute_command("FT.DROPINDEX", Keys(NAMESPACE).index())
    answer = await agent.call("semantic_search", query="heron", mode="keyword")
    found = [hit["memory"]["content"] for hit in answer["hits"]]
    assert answer["partial"] or found == ["The heron stands in the reeds."]
    await wait_until(lambda: _finds(agent, "heron", "The heron stands in the reeds."))


async def test_dropped_index_is_rebuilt_without_a_search(frail: Stack, agent: Agent) -> None:
    await agent.call("memory_stats")
    await frail.client.execute_command("FT.DROPINDEX", Keys(NAMESPACE).index())
    await wait_until(lambda: _index_exists(frail))


async def test_flushed_redis_is_a_fresh_start(frail: Stack, agent: Agent) -> None:
    await frail.client.flushall()
    memory_id = await agent.store("First after the flood.")
    assert (await agent.call("retrieve_memory", memory_id=memory_id))["memory"]["seq"] == 1
    await wait_until(lambda: _finds(agent, "flood", "First after the flood."))
    await wait_until(lambda: all_vectors_ready(agent))


async def test_lost_functions_are_loaded_again(frail: Stack, agent: Agent) -> None:
    await frail.client.execute_command("FUNCTION", "FLUSH")
    assert await agent.store("Functions are back.", wait=False)


async def test_readiness_follows_redis_and_sidecar(frail: Stack, agent: Agent) -> None:
    async with httpx2.AsyncClient(base_url=frail.server.url) as client:
        assert (await client.get("/livez")).status_code == 200
        frail.sidecar.stop()
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"ready": False, "reason": "no embedding sidecar is ready"}
        frail.sidecar.start()
        await wait_until(lambda: sidecar_is_ready(frail.client))
        assert (await client.get("/readyz")).status_code == 200


async def test_without_a_sidecar_of_the_model_keywords_answer_with_advice(frail: Stack, agent: Agent) -> None:
    await frail.client.hset(Keys("other").meta, mapping={"model": "bge-small", "dimension": "512"})
    async with frail.server.agent("alice", "other") as other:
        await other.store("The owl is grey.")
        answer = await other.call("semantic_search", query="owl")
        with pytest.raises(Refused) as refused:
            await other.call("semantic_search", query="owl", mode="vector")
    assert len(answer["hits"]) == 1
    assert "no embedding sidecar for bge-small is alive" in answer["reason"]
    assert "redis-memory-embedder --model bge-small" in refused.value.text


async def test_server_killed_mid_call_leaves_only_complete_memories(frail: Stack, agent: Agent) -> None:
    process, url = await _start_server(frail.redis.url)
    acknowledged: list[str] = []
    try:
        async with McpClient(f"{url}?agent=carol&namespace={NAMESPACE}") as carol:

            async def store(number: int) -> None:
                result = await carol.call_tool("store_memory", {"content": f"carol {number}", "wait": False})
                acknowledged.append((result.structured_content or {})["memory_id"])
                if number == 10:
                    os.kill(process.pid, signal.SIGKILL)

            calls = [asyncio.create_task(store(number)) for number in range(30)]
            await asyncio.to_thread(process.wait, 20)
            await asyncio.wait(calls, timeout=0.2)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
    except* Exception:
        pass
    finally:
        process.kill()
        process.communicate()
    async with frail.server.agent("carol", NAMESPACE) as again:
        for memory_id in acknowledged:
            assert (await again.call("retrieve_memory", memory_id=memory_id))["memory"]["content"].startswith("carol")
        await wait_until(lambda: all_vectors_ready(again))


async def _finds(agent: Agent, query: str, content: str) -> bool:
    answer = await agent.call("semantic_search", query=query, mode="keyword")
    return not answer["partial"] and [hit["memory"]["content"] for hit in answer["hits"]] == [content]


async def _index_exists(stack: Stack) -> bool:
    return Keys(NAMESPACE).index().encode() in await stack.client.execute_command("FT._LIST")


async def _start_server(redis_url: str) -> tuple[subprocess.Popen[bytes], str]:
    process = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-m", "memory_server", "serve", "--port", "0"],
        env={**os.environ, "REDIS_URL": redis_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    while line := await asyncio.to_thread(process.stdout.readline):
        if b"serves MCP at" in line:
            return process, line.split()[-1].decode()
    raise AssertionError("the server did not start")
