"""Settings: each one has its documented effect."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import pytest_asyncio
from mcp import Client as McpClient
from support import settings_fixtures
from support.embedder_fixtures import choose_provider
from support.settings_fixtures import CANARY, Guarded, written
from support.stack import Agent, Refused, Server, in_own_task, serving
from support.stdio import SEED

from memory_core.errors import NotSupported, StoreRefused, StoreUnavailable
from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.times import parse_time
from memory_core.redis_client import Client
from memory_core.settings.settings import CacheSettings, GpuSettings, Settings, VectorStoreSettings
from memory_core.store.connection import redis_url
from memory_core.store.index import ensure_namespace
from memory_core.store.sidecar import SidecarStatus, announce, withdraw
from memory_embedder.engines.providers import CPU, candidates
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.cli import settings_reference
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller
from memory_server.engine.sidecars.vector_cache import VectorCache

TEAM = Caller("team", "alice")
MODEL = Model("model", 16)
A_VECTOR = np.eye(1, MODEL.dimension, dtype=np.float32).tobytes()
CUDA = "CUDAExecutionProvider"
guarded, client = settings_fixtures.guarded, settings_fixtures.client


# redis


@pytest.mark.parametrize(
    ("redis_settings", "url"),
    [
        ({}, None),
        ({"host": "box", "port": 7000}, "redis://box:7000/0"),
        ({"host": "box", "password": "p/@ ss"}, "redis://:p%2F%40%20ss@box:6379/0"),
        ({"host": "box", "username": "me", "password": "x"}, "redis://me:x@box:6379/0"),
        ({"host": "::1", "db": 3}, "redis://[::1]:6379/3"),
        ({"host": "box", "url": "unix:///tmp/r.sock"}, "unix:///tmp/r.sock"),
    ],
)
def test_redis_settings_make_the_url(redis_settings: dict[str, Any], url: str | None) -> None:
    assert redis_url(Settings.load(redis=redis_settings)) == url
    assert redis_url(Settings.load(redis=redis_settings, redis_url="redis://other")) == "redis://other"


@pytest.mark.parametrize("given", [{"db": 3}, {"password": "x"}, {"port": 6380}, {"host": "box"}, {"username": "me"}])
def test_only_the_stock_address_falls_back_to_the_embedded_redis(given: dict[str, Any]) -> None:
    assert not Settings.load(redis=SEED["redis"] | given).uses_config_default_redis


async def test_host_port_and_password_reach_the_configured_redis(guarded: Guarded, tmp_path: Path) -> None:
    address = {"host": "127.0.0.1", "port": guarded.port, "db": 0, "password": CANARY}
    async with Backend(Settings.load(written(tmp_path, SEED | {"redis": address}))).running() as backend:
        assert await (await backend.client()).ping()


@pytest.mark.parametrize(("given", "code"), [({"password": "wrong"}, "store_unavailable"), ({"db": 3}, "unsafe_start")])
async def test_wrong_password_and_database_are_refused(guarded: Guarded, given: dict[str, Any], code: str) -> None:
    address = {"host": "127.0.0.1", "port": guarded.port, "password": CANARY} | given
    async with Backend(Settings.load(redis=address)).running() as backend:
        with pytest.raises(Exception, match=r"user or password|database 0") as refused:
            await backend.client()
        assert isinstance(refused.value, StoreRefused) or backend.fatal.done()
        assert getattr(refused.value, "code", "") == code


async def test_command_deadline_is_kept(guarded: Guarded) -> None:
    async with Backend(Settings.load(redis_url=guarded.url, redis={"timeout_seconds": 0.1})).running() as backend:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await backend.read(lambda _: asyncio.sleep(20))
        assert time.monotonic() - started < 4


# gpu


def test_preferred_device_is_tried(tmp_path: Path) -> None:
    available = [CUDA, CPU]

    def provider(**gpu: Any) -> str:
        return choose_provider(
            Settings.load(written(tmp_path, SEED | {"gpu": SEED["gpu"] | gpu})).gpu, available
        ).provider

    assert provider() == CUDA
    assert provider(preferred_device="cpu") == CPU
    assert provider(enable_acceleration=False) == CPU
    assert provider(preferred_device="cuda:1") == CUDA
    assert candidates(GpuSettings(preferred_device="cuda:1"), available)[0].device == "cuda:1"


def test_falling_back_to_the_cpu_can_be_forbidden() -> None:
    assert choose_provider(GpuSettings(preferred_device="cuda"), [CPU]).fallback
    with pytest.raises(NotSupported, match="CUDA"):
        choose_provider(GpuSettings(preferred_device="cuda", fallback_to_cpu=False), [CPU])


# vector_store


async def test_index_has_the_configured_model_dimension_and_graph(client: Client) -> None:
    store = VectorStoreSettings.model_validate(
        {"embedding_model": "acme/all-Tiny-v1", "vector_dimension": 16, "hnsw": {"m": 8, "ef_construction": 50}}
    )
    await ensure_namespace(client, "tiny", store)
    info = await client.execute_command("FT.INFO", Keys("tiny").index_alias)
    (field,) = [one for one in info[b"attributes"] if one[b"type"] == b"VECTOR"]
    assert field[b"identifier"] == b"vec16_tiny_v1"
    assert (field[b"dim"], field[b"M"], field[b"ef_construction"]) == (16, 8, 50)

    for other in ({"embedding_model": "other"}, {"vector_dimension": 32}):
        models = await ensure_namespace(client, "tiny", store.model_copy(update=other))
        assert models.current == Model("acme/all-Tiny-v1", 16), "only `reindex` changes the model of a namespace"


@pytest.mark.parametrize("index_type", ["Flat", "IVFFlat", "HNSW", "CAGRA"])
def test_bulk_engine_settings_are_accepted(index_type: str) -> None:
    """tests/embedder/test_bulk_engine.py tests their effects."""
    settings = Settings.load(vector_store={"index_type": index_type, "rebuild_threshold": 5})
    found = {one.name: one for one in settings_reference.describe(settings)}
    assert found["vector_store.index_type"].value == index_type
    assert found["vector_store.rebuild_threshold"].value == 5


# cache


async def left(policy: str, **settings: Any) -> str:
    """Return which of three texts a cache of two keeps: the first is used more often, the second more recently."""
    cache_settings = CacheSettings.model_validate({"entries": 2, "policy": policy, "redis_ttl_seconds": 0} | settings)
    cache = VectorCache(Backend(Settings.load()), cache_settings)
    await cache.put(TEAM, {"a": b"a", "b": b"b"}, MODEL)
    for text in "aab":
        await cache.get(TEAM, [text], MODEL)
    await cache.put(TEAM, {"c": b"c"}, MODEL)
    await asyncio.sleep(0.01)
    assert not await cache.get(TEAM, ["a", "b", "c"], Model("other", 16))
    return "".join(sorted(await cache.get(TEAM, ["a", "b", "c"], MODEL)))


async def test_cache_policy_and_size_are_applied() -> None:
    assert await left("lru") == "bc"
    assert await left("lfu") == "ac"
    assert await left("lru", entries=3) == "abc"


async def test_cache_policy_ttl_expires_vectors() -> None:
    assert await left("ttl") == "bc"
    assert await left("ttl", ttl_seconds=0.001) == ""


async def test_redis_cache_ttl_is_applied_and_0_disables_it(guarded: Guarded, client: Client) -> None:
    async with Backend(Settings.load(redis_url=guarded.url)).running() as backend:
        await VectorCache(backend, CacheSettings(redis_ttl_seconds=0)).put(
            Caller("cached", "alice"), {"a": A_VECTOR}, MODEL
        )
        assert await client.keys("rm:{cached}:emb:*") == []
        await VectorCache(backend, CacheSettings(redis_ttl_seconds=77)).put(
            Caller("cached", "alice"), {"a": A_VECTOR}, MODEL
        )
        (key,) = await client.keys("rm:{cached}:emb:*")
        assert 70 < await client.ttl(key) <= 77


# lifetimes, limits and deadlines, on a server

SMALL: dict[str, Any] = {
    "lifetimes": {"critical": 1000, "high": 2000, "medium": None, "low": 4000, "archive": 5000, "grace": 500},
    "limits": {
        "content_bytes": 60,
        "metadata_bytes": 20,
        "query_bytes": 30,
        "tags": 2,
        "ids": 2,
        "operations": 2,
        "clear": 1,
        "body_bytes": 4096,
    },
    "namespace": "squad",
    "agent": "robot",
    "embed_wait_seconds": 0.3,
    "search_timeout_ms": 1234,
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(guarded: Guarded) -> AsyncGenerator[Server]:
    """A server with small limits and no sidecar."""
    async with in_own_task(serving(guarded.url, **SMALL)) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def robot(small: Server) -> AsyncGenerator[Agent]:
    """A client without an agent name or namespace."""
    async with in_own_task(_anonymous(small)) as agent:
        yield agent


@asynccontextmanager
async def _anonymous(server: Server) -> AsyncGenerator[Agent]:
    async with McpClient(f"{server.url}/mcp") as client:
        yield Agent(client)


async def test_anonymous_client_gets_the_configured_agent_and_namespace(client: Client, robot: Agent) -> None:
    memory_id = await robot.store("Who am I?")
    assert await client.hget(Keys("squad").memory(memory_id), "writer") == b"robot"


@pytest.mark.parametrize("priority", ["critical", "high", "medium", "low", "archive"])
async def test_memory_lifetime_depends_on_its_priority(client: Client, robot: Agent, priority: str) -> None:
    lifetime = SMALL["lifetimes"][priority]
    answer = await robot.call("store_memory", content=f"I am {priority}.", priority=priority)
    left = await client.ttl(Keys("squad").memory(answer["memory_id"]))
    if lifetime is None:
        assert (answer.get("expires_at"), left) == (None, -1)
    else:
        assert lifetime - 10 < parse_time(answer["expires_at"]) - time.time() <= lifetime
        assert lifetime + 490 < left <= lifetime + 501


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("store_memory", {"content": "x" * 61}, "at most 60"),
        ("store_memory", {"content": "x", "metadata": {"key": "x" * 20}}, "at most 20"),
        ("store_memory", {"content": "x", "tags": ["a", "b", "c"]}, "at most 2"),
        ("semantic_search", {"query": "x" * 31}, "at most 30"),
        ("clear_memory", {"memory_ids": ["a", "b", "c"], "confirm": True}, "at most 2"),
        ("batch_operations", {"operations": [{"op": "memory_stats"}] * 3}, "at most 2"),
    ],
)
async def test_arguments_beyond_a_limit_are_refused(
    robot: Agent, tool: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused, match=message) as refused:
        await robot.call(tool, **arguments)
    assert refused.value.code == "invalid_argument"


async def test_request_beyond_the_body_limit_is_refused(small: Server) -> None:
    async with httpx2.AsyncClient() as http:
        for size, is_too_long in ((4000, False), (5000, True)):
            answer = await http.post(f"{small.url}/mcp", content=b" " * size)
            assert (answer.status_code == 413) is is_too_long


async def test_clear_stops_at_its_limit(small: Server, robot: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_server.memories.clear.DELETED_AT_ONCE", 2)
    for number in range(5):
        await robot.store(f"Clear me {number}.", context="doomed")
    answer = await robot.call("clear_memory", context="doomed", confirm=True)
    assert (answer["matched"], answer["deleted"]) == (5, 2)


async def test_search_passes_its_deadline_to_redis(client: Client, robot: Agent) -> None:
    async with client.monitor() as monitor:
        await robot.search("deadline", mode="keyword")
        async with asyncio.timeout(5):
            while "FT.SEARCH" not in (said := (await monitor.next_command())["command"]):
                pass
    allowed = re.search(r" TIMEOUT (\d+) ", said)
    assert allowed
    assert 1134 <= int(allowed[1]) <= 1234


async def test_store_waits_for_a_vector_as_long_as_configured(client: Client, robot: Agent) -> None:
    deaf = SidecarStatus(
        id="deaf", host="x", pid=1, model=DEFAULT_MODEL, dimension=384, backend="x", device="cpu", provider="x"
    )
    await announce(client, deaf)
    started = time.monotonic()
    assert (await robot.call("store_memory", content="Nobody embeds me."))["vector"] == "pending"
    assert 0.3 <= time.monotonic() - started < 1.5
    await withdraw(client, "deaf")
