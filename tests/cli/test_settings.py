"""Settings: sources, validation, the reference, and secrets that are never shown."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel
from support import settings_fixtures
from support.embedder_fixtures import wait_until
from support.ports import free_port
from support.settings_fixtures import CANARY, Guarded, run, written
from support.stdio import SEED
from typer.testing import CliRunner

from memory_core.errors import InvalidArgument
from memory_core.settings.settings import Settings, leaves, variable
from memory_core.store.connection import redis_url
from memory_server import cli
from memory_server.cli import settings_reference

guarded = settings_fixtures.guarded


# Sources


def test_seed_config_is_read_unchanged(tmp_path: Path) -> None:
    settings = Settings.load(written(tmp_path, SEED))
    assert settings.uses_config_default_redis
    for group, values in SEED.items():
        held: BaseModel = getattr(settings, group)
        assert {name: getattr(held, name) for name in values} == values


def test_flags_override_the_environment_and_that_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, {"namespace": "file", "agent": "file", "port": 1, "lifetimes": {"low": 1, "high": 1}})
    monkeypatch.setenv("MEMORY_NAMESPACE", "environment")
    monkeypatch.setenv("MEMORY_AGENT", "environment")
    monkeypatch.setenv("MEMORY_LIFETIMES__LOW", "2")
    settings = Settings.load(path, agent="flag")
    assert (settings.namespace, settings.agent, settings.port) == ("environment", "flag", 1)
    assert (settings.lifetimes.low, settings.lifetimes.high) == (2, 1)


def test_variable_can_be_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_LIFETIMES__LOW", "null")
    assert Settings.load().lifetimes.low is None


def test_config_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert Settings.load(written(tmp_path, '\ufeff{"port": 7}')).port == 7


# Validation


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
def test_unknown_setting_is_refused_with_a_suggestion(
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
def test_misspelled_variable_is_refused_with_a_suggestion(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, CANARY)
    with pytest.raises(InvalidArgument, match=name) as refused:
        Settings.load()
    assert meant in refused.value.hint


@pytest.mark.parametrize("name", ["MEMORY_PRESSURE_WATCH", "MEMORY_FILE_PATH", "MEMORY_LIMIT", "MEMORY_EVAL_DATA"])
def test_variables_of_other_programs_are_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "theirs")
    Settings.load()


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ({"namespace": "Not*A*Name"}, "namespace"),
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
def test_wrong_value_is_refused_with_the_path_of_its_setting(tmp_path: Path, content: object, culprit: str) -> None:
    with pytest.raises(InvalidArgument, match=f"settings are not valid: {culprit}: "):
        Settings.load(written(tmp_path, content))


@pytest.mark.parametrize("content", ["[1]", "null", '{"redis": ', "\x00", '"text"'])
def test_file_that_is_not_a_json_object_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InvalidArgument, match=r"the config file .*config\.json"):
        Settings.load(written(tmp_path, content))


def test_missing_config_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="there is no config file"):
        Settings.load(tmp_path / "none.json")


# The reference


def test_every_setting_has_a_one_line_description() -> None:
    for path, info in leaves():
        assert info.description, path
        assert "\n" not in info.description, path


def test_every_setting_is_set_by_its_documented_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, info in leaves():
        if info.default is not None:
            monkeypatch.setenv(variable(path), str(info.default))
    monkeypatch.setenv("REDIS_URL", "redis://host")
    found = {one.name: one for one in settings_reference.describe(Settings.load())}
    assert {found[".".join(path)].origin for path, info in leaves() if info.default is not None} == {"environment"}
    assert found["redis_url"].origin == "environment"


def test_settings_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text() == settings_reference.markdown(), (
        "run `redis-memory settings --markdown > docs/settings.md`"
    )


def test_settings_page_contains_no_current_values(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_reference.markdown()
    monkeypatch.setenv("MEMORY_NAMESPACE", "mine")
    assert run("settings", "--markdown") == (0, before + "None")


def test_settings_command_shows_values_and_their_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    code = "import sys, memory_server.cli, memory_core.settings.settings as s; s.Settings.load(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "memory_server.cli.settings_reference" not in loaded


# Secrets


def test_no_representation_of_settings_shows_a_secret() -> None:
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
        {"agent": f"{CANARY}*"},
        f'{{"redis": {{"password": "{CANARY}" ',
    ],
)
def test_refusal_of_a_config_file_quotes_no_value(tmp_path: Path, content: object) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Settings.load(written(tmp_path, content))
    error = refused.value
    text = f"{error} {error.hint} {error.__cause__} {refused.getrepr(chain=True)}".lower()
    assert CANARY not in text.replace(repr(content).lower(), "")


@pytest.mark.parametrize("value", [f'{{"password": "{CANARY}"', f'{{"passwrd": "{CANARY}"}}'])
def test_refusal_of_a_variable_quotes_no_value(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MEMORY_REDIS", value)
    with pytest.raises(InvalidArgument) as refused:
        Settings.load()
    assert CANARY not in f"{refused.value}{refused.value.hint}{refused.value.__cause__}"


@pytest.mark.parametrize("form", ["--json", "--markdown", None])
def test_settings_command_masks_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str | None) -> None:
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


async def test_server_logs_no_secret_at_debug_level(guarded: Guarded, tmp_path: Path) -> None:
    """The server reads its settings from a file and logs at the level DEBUG."""
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


@pytest.mark.parametrize(("level", "is_logged"), [("INFO", True), ("WARNING", False)])
def test_log_level_is_applied(level: str, is_logged: bool) -> None:
    code = (
        "import logging\nfrom memory_server.cli import root\n"
        "async def serve(*_): logging.getLogger('memory_server').info('started')\n"
        "root._serve = serve\nroot.app(['serve'])"
    )
    environment = {**os.environ, "MEMORY_LOG_LEVEL": level}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert ("INFO memory_server: started" in result.stderr) is is_logged
