"""Commands find HTTP servers by their data directory."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.product import serving, stop_redis
from typer.testing import CliRunner

from memory_core.errors import UnsafeStart
from memory_core.settings.settings import Settings
from memory_server import cli
from memory_server.http.binding import transport_security
from memory_server.local.paths import State, locate, write_record
from memory_server.local.running import address_of, find_servers
from memory_server.local.servers import StdioSession, announced, running_servers, stdio_session


def test_servers_of_a_data_directory_are_found_newest_first(tmp_path: Path) -> None:
    paths, settings = locate(tmp_path / "데이터 dir"), Settings.load(data_dir=tmp_path / "데이터 dir")
    with announced(paths, "http://127.0.0.1:8811", ""):
        with announced(paths, "http://127.0.0.1:8812", ""), announced(paths, "http://127.0.0.1:1", "redis://other:1"):
            assert find_servers(settings) == ["http://127.0.0.1:8812", "http://127.0.0.1:8811"]
            assert {file.stat().st_mode & 0o777 for file in paths.servers.iterdir()} == {0o600}
            assert running_servers(paths)[0].pid == os.getpid()
        assert find_servers(settings) == ["http://127.0.0.1:8811"]
    assert find_servers(settings) == []
    assert list(paths.servers.iterdir()) == []


def test_file_of_a_killed_server_is_recognised_although_its_pid_runs(tmp_path: Path) -> None:
    paths = locate(tmp_path)
    paths.servers.mkdir(mode=0o700)
    stale = paths.servers / f"{os.getpid()}-1.json"
    record = {"url": "http://127.0.0.1:8811", "pid": os.getpid(), "started_at": 1.0, "redis": ""}
    stale.write_text(json.dumps(record))
    stale.chmod(0o600)
    (paths.servers / "0-2.json").symlink_to(stale)
    assert running_servers(paths) == []
    assert stale.exists(), "a read changes nothing"
    with announced(paths, "http://127.0.0.1:8812", ""):
        assert [one.url for one in running_servers(paths)] == ["http://127.0.0.1:8812"]
        assert not stale.exists()


def test_session_in_a_copied_data_directory_is_not_ended(tmp_path: Path) -> None:
    own = StdioSession("one", "team", "ada", "redis://elsewhere")
    paths, copied = locate(tmp_path / "data"), locate(tmp_path / "copy")
    with stdio_session(paths, own):
        shutil.copytree(paths.data_dir, copied.data_dir)
        with stdio_session(copied, replace(own, session="two")) as ended:
            assert ended == []


def test_unusable_data_directory_is_a_refusal(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UnsafeStart, match="cannot use the data directory"), announced(locate(file), "http://x", ""):
        pass


def test_external_redis_without_announced_server_keeps_the_configured_address(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path, redis_url="redis://:secret@10.0.0.1:6379/0", port=8811)
    assert find_servers(settings) == ["http://127.0.0.1:8811"]
    with announced(locate(tmp_path), "http://127.0.0.1:9000", "redis://10.0.0.1:6379/0"):
        assert find_servers(settings) == ["http://127.0.0.1:9000"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("redis://:secret@localhost:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://127.0.0.1", "redis://127.0.0.1:6379/0"),
        ("redis://user:p@[::1]:6379/0?protocol=3", "redis://[::1]"),
        ("redis://CACHE.example:6379", "redis://cache.example:6379/0"),
        ("redis+sentinel://a:1,b:2/main", "redis+sentinel://a:1,b:2/main"),
        ("unix:///run/redis.sock?db=0", "unix:///run/redis.sock"),
    ],
)
def test_server_is_found_by_each_spelling_of_its_redis(tmp_path: Path, ours: str, theirs: str) -> None:
    settings = Settings.load(data_dir=tmp_path, redis_url=ours)
    with announced(locate(tmp_path), "http://127.0.0.1:9000", address_of(theirs)):
        assert find_servers(settings) == ["http://127.0.0.1:9000"]
    with announced(locate(tmp_path), "http://127.0.0.1:9000", address_of("redis://other.example:6379/0")):
        assert find_servers(settings) == ["http://127.0.0.1:8765"]


def test_url_of_the_embedded_redis_finds_its_servers_and_the_reverse(tmp_path: Path) -> None:
    paths = locate(tmp_path)
    write_record(paths.state, State(1, "/run/x.sock", 41234, "model", 1.0))
    embedded = Settings.load(data_dir=tmp_path)
    for url in ("redis://:secret@127.0.0.1:41234/0", "redis://localhost:41234", "unix://:secret@/run/x.sock"):
        by_url = Settings.load(data_dir=tmp_path, redis_url=url)
        with announced(paths, "http://127.0.0.1:9000", ""):
            assert find_servers(by_url) == ["http://127.0.0.1:9000"]
        with announced(paths, "http://127.0.0.1:9000", address_of(url)):
            assert find_servers(embedded) == ["http://127.0.0.1:9000"]


def test_server_is_found_while_its_redis_still_starts(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path, redis_url="redis://127.0.0.1:1/0", port=8811)
    environment = {**os.environ, "MEMORY_DATA_DIR": str(tmp_path), "REDIS_URL": "redis://127.0.0.1:1/0"}
    command = [sys.executable, "-m", "memory_server", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 30
            while find_servers(settings) == ["http://127.0.0.1:8811"]:
                assert time.monotonic() < deadline, "the server never wrote where it listens"
                time.sleep(0.05)
        finally:
            server.kill()


def test_loopback_address_of_the_server_is_an_allowed_host() -> None:
    allowed = transport_security(Settings.load(host="127.0.0.2"))
    assert "127.0.0.2:*" in allowed.allowed_hosts
    assert "http://127.0.0.2:*" in allowed.allowed_origins
    for host in ("0.0.0.0", "192.0.2.1", "127.0.0.1", "localhost"):
        hosts = transport_security(Settings.load(host=host)).allowed_hosts
        assert hosts == ["127.0.0.1:*", "localhost:*", "[::1]:*"]


def test_server_with_a_bad_key_or_folder_is_refused_before_it_promises_anything(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for settings in ({"MEMORY_MASTER_KEY": "short"}, {"MEMORY_DATA_DIR": str(file)}):
        ended = subprocess.run(
            [sys.executable, "-m", "memory_server", "serve", "--port", "0"],
            env={**os.environ, "MEMORY_DATA_DIR": str(tmp_path / "new"), **settings},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (ended.returncode, ended.stdout) == (78, ""), ended.stderr


@pytest.mark.long
async def test_commands_find_a_server_on_any_port_until_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("REDIS_URL", "MEMORY_PORT", "MEMORY_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "memory"
    monkeypatch.setenv("MEMORY_DATA_DIR", str(folder))

    def run(*words: str) -> str:
        result = CliRunner().invoke(cli.app, [*words])
        assert result.exit_code in (0, 1), (result.output, result.exception)
        return result.output

    def check() -> None:
        command = (sys.executable, "-m", "memory_server", "serve")
        with (tmp_path / "log").open("wb") as log, serving(command, folder, log) as first:
            with serving(command, folder, log) as second:
                status = json.loads(run("status", "--json"))
                assert [one["url"] for one in (status["server"], *status["more_servers"])] == [second, first]
                assert status["server"]["ready"]
            assert first in run("connect", "claude", "--print")
            assert run("dashboard").startswith(f"{first.removesuffix('mcp')}#operator=")
            os.kill(running_servers(locate(folder))[0].pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while running_servers(locate(folder)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            killed = json.loads(run("status", "--json"))
            assert (killed["redis"]["answers"], killed["server"]["servers"]) == (True, False)
            text = run("status")
            assert "none running" in text
            assert f"no server is running on the data directory {folder}" in text
        stop_redis(folder)

    await asyncio.to_thread(check)
