"""Settings: each changes what it says, wrong ones are refused by name, secrets are never shown."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import redis
from embedder_fixtures import RedisServer, wait_until
from mcp import Client as McpClient
from pydantic import BaseModel
from stack import Agent, Refused, Server, in_own_task, serving
from test_startup import SEED
from typer.testing import CliRunner

from memory_core import keys
from memory_core.connection import Client, connect, redis_url
from memory_core.errors import InvalidArgument, ModelMismatch, NotSupported, StoreRefused, StoreUnavailable
from memory_core.index import ensure_namespace
from memory_core.keys import Keys
from memory_core.settings import CacheSettings, GpuSettings, Settings, VectorStoreSettings, leaves, variable
from memory_core.times import parse_time
from memory_embedder.providers import CPU, candidates, choose
from memory_server import cli, settings_reference
from memory_server.backend import Backend
from memory_server.caching import VectorCache
from memory_server.usecases.principals import Caller

CANARY = "canary-hunter2"
TEAM = Caller("team", "alice")
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True, slots=True)
class Guarded:
    """A Redis behind a password, which is the canary."""

    socket: str
    port: int

    @property
    def url(self) -> str:
        return f"redis://:{CANARY}@127.0.0.1:{self.port}/0"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Generator[Guarded]:
    server = RedisServer(tmp_path_factory.mktemp("guarded"))
    server.start()
    port = free_port()
    with redis.Redis(unix_socket_path=str(server.path)) as client:
        client.config_set("port", port)
        client.config_set("requirepass", CANARY)
    yield Guarded(str(server.path), port)
    server.kill()


@pytest.fixture
async def client(guarded: Guarded) -> AsyncGenerator[Client]:
    async with connect(guarded.url) as connected:
        yield connected


def free_port() -> int:
    """Give a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def written(folder: Path, content: object) -> Path:
    """Write a config file."""
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def run(*command: str) -> tuple[int, str]:
    """Run a command of the console in this process; its exit code and all it said."""
    result = CliRunner().invoke(cli.app, command)
    return result.exit_code, result.output + repr(result.exception)


# Where settings come from


def test_the_seed_config_is_read_as_it_stands(tmp_path: Path) -> None:
    settings = Settings.load(written(tmp_path, SEED))
    assert settings.uses_config_default_redis
    for group, values in SEED.items():
        held: BaseModel = getattr(settings, group)
        assert {name: getattr(held, name) for name in values} == values


def test_flags_win_over_the_environment_which_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, {"namespace": "file", "agent": "file", "port": 1, "lifetimes": {"low": 1, "high": 1}})
    monkeypatch.setenv("MEMORY_NAMESPACE", "environment")
    monkeypatch.setenv("MEMORY_AGENT", "environment")
    monkeypatch.setenv("MEMORY_LIFETIMES__LOW", "2")
    settings = Settings.load(path, agent="flag")
    assert (settings.namespace, settings.agent, settings.port) == ("environment", "flag", 1)
    assert (settings.lifetimes.low, settings.lifetimes.high) == (2, 1)


def test_a_variable_can_say_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_LIFETIMES__LOW", "null")
    assert Settings.load().lifetimes.low is None


def test_a_config_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert Settings.load(written(tmp_path, '\ufeff{"port": 7}')).port == 7


# What is refused


@pytest.mark.parametrize(
    ("content", "culprit", "meant"),
    [
        ({"namespac": "x"}, "namespac", "namespace"),
        ({"redis": {"passwd": CANARY}}, "redis.passwd", "redis.password"),
        ({"password": CANARY}, "password", "redis.password"),
        ({"vector_store": {"hnsw": {"ef_search": 9}}}, "vector_store.hnsw.ef_search", "vector_store.hnsw.ef_"),
        ({"colour": "red"}, "colour", "`redis-memory settings` shows all"),
    ],
)
def test_an_unknown_setting_is_refused_with_what_was_meant(
    tmp_path: Path, content: object, culprit: str, meant: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"settings are not valid: {re.escape(culprit)} is not a setting") as one:
        Settings.load(written(tmp_path, content))
    assert meant in one.value.hint


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MEMORY_NAMSPACE", "MEMORY_NAMESPACE"),
        ("MEMORY_REDIS__PASSWRD", "redis.password"),
        ("MEMORY_REDIS_PASSWORD", "MEMORY_REDIS__PASSWORD"),
        ("MEMORY_PORT__X", "MEMORY_PORT"),
    ],
)
def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, meant: str) -> None:
    monkeypatch.setenv(name, CANARY)
    with pytest.raises(InvalidArgument, match=name) as refused:
        Settings.load()
    assert meant in refused.value.hint


@pytest.mark.parametrize("name", ["MEMORY_PRESSURE_WATCH", "MEMORY_FILE_PATH", "MEMORY_LIMIT", "MEMORY_EVAL_DATA"])
def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "theirs")
    Settings.load()


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ({"namespace": "Not A Name"}, "namespace"),
        ({"redis": {"port": 99_999}}, "redis.port"),
        ({"redis": {"port": "x"}}, "redis.port"),
        ({"redis": {"host": f"redis://:{CANARY}@host"}}, "redis.host"),
        ({"redis": {"host": "localhost:6380"}}, "redis.host"),
        ({"redis": {"timeout_seconds": 0}}, "redis.timeout_seconds"),
        ({"gpu": {"preferred_device": "tpu"}}, "gpu.preferred_device"),
        ({"gpu": {"enable_acceleration": "perhaps"}}, "gpu.enable_acceleration"),
        ({"vector_store": {"vector_dimension": 0}}, "vector_store.vector_dimension"),
        ({"vector_store": {"index_type": "BTree"}}, "vector_store.index_type"),
        ({"vector_store": {"rebuild_threshold": 0}}, "vector_store.rebuild_threshold"),
        ({"vector_store": {"embedding_model": ""}}, "vector_store.embedding_model"),
        ({"lifetimes": {"low": 0}}, "lifetimes.low"),
        ({"limits": {"content_bytes": -1}}, "limits.content_bytes"),
        ({"cache": {"policy": "random"}}, "cache.policy"),
        ('{"embed_wait_seconds": Infinity}', "embed_wait_seconds"),
    ],
)
def test_a_wrong_value_is_refused_by_the_path_of_its_setting(tmp_path: Path, content: object, culprit: str) -> None:
    with pytest.raises(InvalidArgument, match=f"settings are not valid: {culprit}: "):
        Settings.load(written(tmp_path, content))


@pytest.mark.parametrize("content", ["[1]", "null", '{"redis": ', "\x00", '"text"'])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InvalidArgument, match=r"the config file .*config\.json"):
        Settings.load(written(tmp_path, content))


def test_a_missing_config_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="there is no config file"):
        Settings.load(tmp_path / "none.json")


# The reference


def test_every_setting_is_described_in_one_line() -> None:
    for path, info in leaves():
        assert info.description, path
        assert "\n" not in info.description, path


def test_every_setting_can_be_set_by_the_variable_that_the_reference_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, info in leaves():
        if info.default is not None:
            monkeypatch.setenv(variable(path), str(info.default))
    monkeypatch.setenv("REDIS_URL", "redis://host")
    found = {one.name: one for one in settings_reference.describe(Settings.load())}
    assert {found[".".join(path)].origin for path, info in leaves() if info.default is not None} == {"environment"}
    assert found["redis_url"].origin == "environment"


def test_the_settings_page_is_current() -> None:
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text() == settings_reference.markdown(), (
        "run `redis-memory settings --markdown > docs/settings.md`"
    )


def test_the_settings_page_tells_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_reference.markdown()
    monkeypatch.setenv("MEMORY_NAMESPACE", "mine")
    assert run("settings", "--markdown") == (0, before + "None")


def test_the_command_shows_values_and_where_they_are_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_PORT", "9000")
    monkeypatch.setenv("MEMORY_CACHE", '{"entries": 5}')
    result = CliRunner().invoke(
        cli.app, ["settings", "--json", "--config", str(written(tmp_path, {"lifetimes": {"low": 60}, "port": 1}))]
    )
    found = {one["name"]: one for one in json.loads(result.output)}
    expected: dict[str, tuple[Any, str]] = {
        "port": (9000, "environment"),
        "cache.entries": (5, "environment"),
        "lifetimes.low": (60, "file"),
    }
    expected["log_level"] = ("INFO", "default")
    assert {name: (found[name]["value"], found[name]["origin"]) for name in expected} == expected
    _, text = run("settings")
    assert re.search(r"^port +9000 +environment +8765 +MEMORY_PORT$", text, re.MULTILINE)


def test_serving_does_not_import_the_reference() -> None:
    code = "import sys, memory_server.cli, memory_core.settings as s; s.Settings.load(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "memory_server.settings_reference" not in loaded


# Secrets


def test_no_form_of_the_settings_shows_a_secret() -> None:
    url = f"redis://:{CANARY}@host:1/0"
    settings = Settings.load(redis_url=url, redis={"url": url, "password": CANARY})
    forms = [
        repr(settings),
        str(settings),
        str(settings.model_dump()),
        settings.model_dump_json(),
        repr(settings.redis),
    ]
    assert CANARY not in "".join(forms)
    assert redis_url(settings) == url


@pytest.mark.parametrize(
    "content",
    [
        {"redis": {"password": [CANARY]}},
        {"redis": CANARY},
        {"redis": {"host": f":{CANARY}@host"}},
        {"redis": {"passwrd": CANARY}},
        {"redis_url": {"url": CANARY}},
        {"redis": {"port": CANARY}},
        {"agent": CANARY.upper()},
        f'{{"redis": {{"password": "{CANARY}" ',
    ],
)
def test_no_refusal_quotes_a_value(tmp_path: Path, content: object) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Settings.load(written(tmp_path, content))
    error = refused.value
    told = f"{error} {error.hint} {error.__cause__} {refused.getrepr(chain=True)}".lower()
    assert CANARY not in told.replace(repr(content).lower(), "")


@pytest.mark.parametrize("value", [f'{{"password": "{CANARY}"', f'{{"passwrd": "{CANARY}"}}'])
def test_no_refusal_of_a_variable_quotes_its_value(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MEMORY_REDIS", value)
    with pytest.raises(InvalidArgument) as refused:
        Settings.load()
    assert CANARY not in f"{refused.value}{refused.value.hint}{refused.value.__cause__}"


@pytest.mark.parametrize("form", ["--json", "--markdown", None])
def test_the_settings_command_masks_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str | None) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://:{CANARY}@host")
    path = written(tmp_path, {"redis": {"url": f"redis://:{CANARY}@host", "password": CANARY}})
    code, said = run("settings", "--config", str(path), *([form] if form else []))
    assert code == 0
    assert CANARY not in said
    assert form == "--markdown" or said.count("*****") >= 3


@pytest.mark.parametrize("url", ["redis://:{}@127.0.0.1:{}/0", "redis://:wrong-{}@127.0.0.1:{}/0", "redis://:{}/@host"])
def test_doctor_shows_no_secret(guarded: Guarded, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_URL", url.format(CANARY, guarded.port))
    _, said = run("doctor", "--json")
    assert CANARY not in said


async def test_a_server_that_logs_everything_logs_no_secret(guarded: Guarded, tmp_path: Path) -> None:
    """It takes its settings from a file, listens where that says and writes all that it can."""
    port = free_port()
    content = {
        "redis": {"host": "127.0.0.1", "port": guarded.port, "db": 0, "password": CANARY},
        "port": port,
        "log_level": "DEBUG",
    }
    command = [sys.executable, "-m", "memory_server", "serve", "--config", str(written(tmp_path, content))]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    async def connected() -> bool:
        try:
            async with httpx2.AsyncClient() as http:
                answer = await http.get(f"http://127.0.0.1:{port}/readyz")
        except httpx2.TransportError:
            return False
        return answer.status_code == 200 or "Redis" not in str(answer.json()["reason"])

    try:
        await wait_until(connected)
    finally:
        process.terminate()
        output, _ = await process.communicate()
    text = output.decode()
    assert "DEBUG mcp" in text
    assert "connected to Redis" in text
    assert CANARY not in text


@pytest.mark.parametrize(("level", "told"), [("INFO", True), ("WARNING", False)])
def test_the_log_level_says_what_is_logged(level: str, told: bool) -> None:
    code = (
        "import logging\nfrom memory_server import cli\n"
        "async def serve(*_): logging.getLogger('memory_server').info('told')\n"
        "cli._serve = serve\ncli.app(['serve'])"
    )
    environment = {**os.environ, "MEMORY_LOG_LEVEL": level}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ("INFO memory_server: told" in result.stderr) is told


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
def test_the_settings_of_redis_make_its_url(redis_settings: dict[str, Any], url: str | None) -> None:
    assert redis_url(Settings.load(redis=redis_settings)) == url
    assert redis_url(Settings.load(redis=redis_settings, redis_url="redis://other")) == "redis://other"


@pytest.mark.parametrize("given", [{"db": 3}, {"password": "x"}, {"port": 6380}, {"host": "box"}, {"username": "me"}])
def test_only_the_stock_address_falls_to_the_embedded_redis(given: dict[str, Any]) -> None:
    assert not Settings.load(redis=SEED["redis"] | given).uses_config_default_redis


async def test_host_port_and_password_reach_that_redis(guarded: Guarded, tmp_path: Path) -> None:
    address = {"host": "127.0.0.1", "port": guarded.port, "db": 0, "password": CANARY}
    async with Backend(Settings.load(written(tmp_path, SEED | {"redis": address}))).running() as backend:
        assert await (await backend.client()).ping()


@pytest.mark.parametrize(("given", "code"), [({"password": "wrong"}, "store_unavailable"), ({"db": 3}, "unsafe_start")])
async def test_a_wrong_password_and_another_database_are_refused(
    guarded: Guarded, given: dict[str, Any], code: str
) -> None:
    address = {"host": "127.0.0.1", "port": guarded.port, "password": CANARY} | given
    async with Backend(Settings.load(redis=address)).running() as backend:
        with pytest.raises(Exception, match=r"user or password|database 0") as refused:
            await backend.client()
        assert isinstance(refused.value, StoreRefused) or backend.fatal.done()
        assert getattr(refused.value, "code", "") == code


async def test_the_deadline_of_a_command_is_kept(guarded: Guarded) -> None:
    async with Backend(Settings.load(redis_url=guarded.url, redis={"timeout_seconds": 0.1})).running() as backend:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await backend.read(lambda _: asyncio.sleep(20))
        assert time.monotonic() - started < 4


# gpu


def test_the_preferred_device_is_tried(tmp_path: Path) -> None:
    available = [CUDA, CPU]

    def provider(**gpu: Any) -> str:
        return choose(Settings.load(written(tmp_path, SEED | {"gpu": SEED["gpu"] | gpu})).gpu, available).provider

    assert provider() == CUDA
    assert provider(preferred_device="cpu") == CPU
    assert provider(enable_acceleration=False) == CPU
    assert provider(preferred_device="cuda:1") == CUDA
    assert candidates(GpuSettings(preferred_device="cuda:1"), available)[0].device == "cuda:1"


def test_falling_back_to_the_cpu_can_be_forbidden() -> None:
    assert choose(GpuSettings(preferred_device="cuda"), [CPU]).fallback
    with pytest.raises(NotSupported, match="CUDA"):
        choose(GpuSettings(preferred_device="cuda", fallback_to_cpu=False), [CPU])


# vector_store


async def test_the_index_has_the_models_field_its_dimension_and_the_graph(client: Client) -> None:
    store = VectorStoreSettings.model_validate(
        {"embedding_model": "acme/all-Tiny-v1", "vector_dimension": 16, "hnsw": {"m": 8, "ef_construction": 50}}
    )
    await ensure_namespace(client, "tiny", store)
    info = await client.execute_command("FT.INFO", Keys("tiny").index_alias)
    (field,) = [one for one in info[b"attributes"] if one[b"type"] == b"VECTOR"]
    assert field[b"identifier"] == b"vec_tiny_v1"
    assert (field[b"dim"], field[b"M"], field[b"ef_construction"]) == (16, 8, 50)

    for other in ({"embedding_model": "other"}, {"vector_dimension": 32}):
        with pytest.raises(ModelMismatch, match="is indexed for acme/all-Tiny-v1"):
            await ensure_namespace(client, "tiny", store.model_copy(update=other))


@pytest.mark.parametrize("index_type", ["Flat", "IVFFlat", "HNSW", "CAGRA"])
def test_the_settings_of_the_bulk_engine_are_accepted_and_said_to_wait_for_it(index_type: str) -> None:
    settings = Settings.load(vector_store={"index_type": index_type, "rebuild_threshold": 5})
    found = {one.name: one for one in settings_reference.describe(settings)}
    for name in ("index_type", "rebuild_threshold"):
        assert "not built yet" in found[f"vector_store.{name}"].description
    assert found["vector_store.index_type"].value == index_type


# cache


async def left(policy: str, **settings: Any) -> str:
    """Which of three texts a cache of two keeps, the first being used more often, the second more recently."""
    cache_settings = CacheSettings.model_validate({"entries": 2, "policy": policy, "redis_ttl_seconds": 0} | settings)
    cache = VectorCache(Backend(Settings.load()), "model", cache_settings)
    await cache.put(TEAM, {"a": b"a", "b": b"b"})
    for text in "aab":
        await cache.get(TEAM, [text])
    await cache.put(TEAM, {"c": b"c"})
    await asyncio.sleep(0.01)
    return "".join(sorted(await cache.get(TEAM, ["a", "b", "c"])))


async def test_the_policy_and_the_entries_say_what_the_process_keeps() -> None:
    assert await left("lru") == "bc"
    assert await left("lfu") == "ac"
    assert await left("lru", entries=3) == "abc"


async def test_with_policy_ttl_vectors_live_as_long_as_that_says() -> None:
    assert await left("ttl") == "bc"
    assert await left("ttl", ttl_seconds=0.001) == ""


async def test_vectors_stay_in_redis_as_long_as_set_and_not_at_all_with_0(guarded: Guarded, client: Client) -> None:
    async with Backend(Settings.load(redis_url=guarded.url)).running() as backend:
        await VectorCache(backend, "model", CacheSettings(redis_ttl_seconds=0)).put(
            Caller("cached", "alice"), {"a": b"a"}
        )
        assert await client.keys("rm:{cached}:emb:*") == []
        await VectorCache(backend, "model", CacheSettings(redis_ttl_seconds=77)).put(
            Caller("cached", "alice"), {"a": b"a"}
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
    """A client that names neither itself nor a namespace."""
    async with in_own_task(_anonymous(small)) as agent:
        yield agent


@asynccontextmanager
async def _anonymous(server: Server) -> AsyncGenerator[Agent]:
    async with McpClient(f"{server.url}/mcp") as client:
        yield Agent(client)


async def test_a_client_that_names_nothing_is_who_the_settings_say(client: Client, robot: Agent) -> None:
    memory_id = await robot.store("Who am I?")
    assert await client.hget(Keys("squad").memory(memory_id), "writer") == b"robot"


@pytest.mark.parametrize("priority", ["critical", "high", "medium", "low", "archive"])
async def test_a_memory_lives_as_long_as_its_priority_says(client: Client, robot: Agent, priority: str) -> None:
    lifetime = SMALL["lifetimes"][priority]
    answer = await robot.call("store_memory", content=f"I am {priority}.", priority=priority)
    left = await client.ttl(Keys("squad").memory(answer["memory_id"]))
    if lifetime is None:
        assert (answer.get("expires_at"), left) == (None, -1)
    else:
        assert lifetime - 10 < parse_time(answer["expires_at"]) - time.time() <= lifetime
        assert lifetime + 490 < left <= lifetime + 501


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("store_memory", {"content": "x" * 61}, "at most 60"),
        ("store_memory", {"content": "x", "metadata": {"key": "x" * 20}}, "at most 20"),
        ("store_memory", {"content": "x", "tags": ["a", "b", "c"]}, "at most 2"),
        ("semantic_search", {"query": "x" * 31}, "at most 30"),
        ("clear_memory", {"memory_ids": ["a", "b", "c"], "confirm": True}, "at most 2"),
        ("batch_operations", {"operations": [{"op": "memory_stats"}] * 3}, "at most 2"),
    ],
)
async def test_what_is_beyond_a_limit_is_refused(robot: Agent, tool: str, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(Refused, match=told) as refused:
        await robot.call(tool, **arguments)
    assert refused.value.code == "invalid_argument"


async def test_a_request_beyond_its_limit_is_refused(small: Server) -> None:
    async with httpx2.AsyncClient() as http:
        for size, is_too_long in ((4000, False), (5000, True)):
            answer = await http.post(f"{small.url}/mcp", content=b" " * size)
            assert (answer.status_code == 413) is is_too_long


async def test_one_clearing_ends_at_its_limit(small: Server, robot: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_server.usecases.clear._SLICE", 2)
    for number in range(5):
        await robot.store(f"Clear me {number}.", context="doomed")
    answer = await robot.call("clear_memory", context="doomed", confirm=True)
    assert (answer["matched"], answer["deleted"]) == (5, 2)


async def test_a_search_tells_redis_its_deadline(client: Client, robot: Agent) -> None:
    async with client.monitor() as monitor:
        await robot.search("deadline", mode="keyword")
        async with asyncio.timeout(5):
            while "FT.SEARCH" not in (said := (await monitor.next_command())["command"]):
                pass
    allowed = re.search(r" TIMEOUT (\d+) ", said)
    assert allowed
    assert 1134 <= int(allowed[1]) <= 1234


async def test_a_call_waits_for_a_vector_as_long_as_set(client: Client, robot: Agent) -> None:
    await client.zadd(keys.SIDECARS, {"deaf": time.time() + 60})
    started = time.monotonic()
    assert (await robot.call("store_memory", content="Nobody embeds me."))["vector"] == "pending"
    assert 0.3 <= time.monotonic() - started < 1.5
    await client.delete(keys.SIDECARS)
