"""Startup: refused configurations, shared processes, and a fast first answer."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from support.embedder_fixtures import RedisServer, wait_until
from support.local_helpers import stop_everything
from support.stack import Agent, Refused
from support.stdio import SEED, stdio_agent

from memory_core.errors import InvalidArgument, StoreUnavailable, UnsafeStart
from memory_core.settings.settings import Settings
from memory_core.store.connection import check_server, connect
from memory_server.http.app import bind
from memory_server.http.binding import check_bind
from memory_server.operations.doctor import examine

ALL_SERVER_MODULES = """
import pkgutil, sys
import memory_core, memory_server
for package in (memory_core, memory_server):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            __import__(module.name)
print(sorted({"torch", "onnxruntime", "sentence_transformers", "tokenizers"} & set(sys.modules)))
"""
LIGHT_START = """
import sys
import memory_server.cli, memory_server.mcp.stdio, memory_core.settings.settings
print(sorted({"numpy", "redis", "redisvl", "dateparser", "snowballstemmer", "jwt"} & set(sys.modules)))
"""


def run_python(code: str) -> str:
    """Run code in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_server_never_imports_an_inference_engine() -> None:
    assert run_python(ALL_SERVER_MODULES) == "[]"


def test_stdio_server_imports_nothing_heavy_before_it_answers() -> None:
    assert run_python(LIGHT_START) == "[]"


def test_no_python_file_shadows_the_redis_client() -> None:
    assert list((Path(__file__).parents[2] / "redis").rglob("*.py")) == []


async def test_tools_are_listed_before_redis_is_up() -> None:
    async with stdio_agent("early", REDIS_URL="redis://127.0.0.1:1/0") as agent:
        async with asyncio.timeout(10):
            tools = (await agent.client.list_tools()).tools
        assert {"store_memory", "semantic_search", "gpu_status"} <= {tool.name for tool in tools}


@pytest.mark.long
async def test_stdio_servers_share_one_redis_and_sidecar(tmp_path: Path) -> None:
    names = ("claude", "gemini", "vscode")
    try:
        async with AsyncExitStack() as stack:
            connecting = [stdio_agent(name, "--data-dir", str(tmp_path)) for name in names]
            agents = [await stack.enter_async_context(agent) for agent in connecting]
            await asyncio.gather(
                *(
                    agent.store(f"{kind} word of {name}", visibility=kind)
                    for name, agent in zip(names, agents, strict=True)
                    for kind in ("public", "private")
                )
            )
            report = await examine(Settings.load(data_dir=tmp_path))
            assert report.healthy, report.text()
            assert len(report.sidecars) == 1
            for name, agent in zip(names, agents, strict=True):
                found = set(await agent.search("word", mode="keyword"))
                assert found == {f"public word of {other}" for other in names} | {f"private word of {name}"}
    finally:
        await stop_everything(tmp_path)


async def test_seed_config_falls_back_to_the_embedded_redis(tmp_path: Path) -> None:
    """Its localhost:6379 is only a default; here nothing listens there."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SEED))
    data = tmp_path / "data"
    try:
        async with stdio_agent("seed", "--config", str(config), "--data-dir", str(data)) as agent:
            assert await agent.store("Configured by the seed.")
            await wait_until(lambda: _has_sidecar(agent))
    finally:
        await stop_everything(data)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_non_loopback_host_without_authentication_is_refused(host: str) -> None:
    with pytest.raises(UnsafeStart, match="needs authentication"):
        check_bind(Settings.load(host=host))


def test_taken_port_is_reported() -> None:
    with bind(Settings.load(port=0)) as listener:
        listener.listen()
        with pytest.raises(InvalidArgument, match="cannot listen on"):
            bind(Settings.load(port=listener.getsockname()[1]))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_host_is_accepted(host: str) -> None:
    check_bind(Settings.load(host=host))


async def test_redis_with_eviction_is_refused(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        async with connect(redis.url) as client:
            await check_server(client)
            await client.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(UnsafeStart, match="maxmemory-policy"):
                await check_server(client)
        refused = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "memory_server", "serve", "--port", "0"],
            env={**os.environ, "REDIS_URL": redis.url},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert refused.returncode == 78
        async with stdio_agent("careless", REDIS_URL=redis.url) as agent:
            with pytest.raises(Refused) as over_stdio:
                await agent.store("Not here.")
        assert over_stdio.value.code == "unsafe_start"
        assert refused.stderr.splitlines()[-1].startswith("unsafe_start: maxmemory-policy is allkeys-lru")
    finally:
        redis.kill()


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://localhost:notaport"])
async def test_invalid_redis_url_is_reported(url: str) -> None:
    async with stdio_agent("careless", REDIS_URL=url) as agent:
        with pytest.raises(Refused) as refused:
            await agent.store("Where to?")
    assert "not a URL of Redis" in refused.value.text


async def test_wrong_redis_password_is_reported(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        async with connect(redis.url) as client:
            await client.config_set("requirepass", "right")
        with pytest.raises(StoreUnavailable, match="user or password"):
            async with connect(redis.url.replace("unix://", "unix://:wrong@")) as client:
                await check_server(client)
    finally:
        redis.kill()


async def test_database_other_than_0_is_refused(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        async with connect(f"{redis.url}?db=3") as client:
            with pytest.raises(UnsafeStart, match="database 0"):
                await check_server(client)
    finally:
        redis.kill()


async def test_embedded_stack_keeps_memories_after_a_stop(tmp_path: Path) -> None:
    try:
        async with stdio_agent("claude", "--data-dir", str(tmp_path)) as agent:
            memory_id = await agent.store("Remember me tomorrow.")
        await stop_everything(tmp_path)
        async with stdio_agent("claude", "--data-dir", str(tmp_path)) as agent:
            await wait_until(lambda: _found(agent))
            assert (await agent.call("retrieve_memory", memory_id=memory_id))["memory"]["vector"] == "ready"
    finally:
        await stop_everything(tmp_path)


async def _has_sidecar(agent: Agent) -> bool:
    return bool((await agent.call("gpu_status"))["sidecars"])


async def _found(agent: Agent) -> bool:
    answer = await agent.call("semantic_search", query="what shall you remember?")
    return not answer["partial"] and bool(answer["hits"])
