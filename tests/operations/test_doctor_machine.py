"""What the doctor sees of this machine: the embedded Redis and its files, room on disk, ports, keys in files."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.doctor_helpers import KEY, TRANSPORTS, Deployment, bare, only
from support.local_helpers import attached, running, until
from support.stack import in_own_task

from memory_core.settings.settings import Settings
from memory_server.operations.doctor import examine
from memory_server.operations.health import machine
from memory_server.operations.health.report import Report

COMPLAIN = "import sys; print('onnxruntime is missing', file=sys.stderr); sys.exit(78)"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def empty(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Deployment]:
    """A Redis in which there is nothing."""
    async with in_own_task(bare(tmp_path_factory.mktemp("empty"))) as found:
        yield found


async def look(folder: Path) -> tuple[set[str], Report]:
    """Have the doctor look at the embedded Redis of a folder; that no sidecar lives there is no news."""
    report = await examine(Settings.load(data_dir=folder, port=0))
    return {fault.id for fault in report.faults} - {"sidecars.alive"}, report


def remedy(report: Report, fault: str) -> str:
    """Give the remedy of a fault."""
    return next(found.remedy for found in report.faults if found.id == fault)


async def test_that_nothing_runs_is_told_with_what_could_be_started(tmp_path: Path) -> None:
    faults, report = await look(tmp_path)
    assert faults == {"embedded.supervisor"}
    assert remedy(report, "embedded.supervisor") == "start it with redis-memory serve"
    assert any(finding.id == "embedded.binaries" for finding in report.findings)


async def test_faults_of_the_embedded_redis_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with attached(tmp_path) as local:
        faults, report = await look(tmp_path)
        assert (faults, report.redis["port"]) == (set(), running(local).port)
        for path, mode, fault in ((local.paths.password, 0o640, "files.secret"), (tmp_path, 0o777, "files.folder")):
            proper = path.stat().st_mode & 0o777
            path.chmod(mode)
            faults, report = await look(tmp_path)
            path.chmod(proper)
            assert (faults, remedy(report, fault)) == ({fault}, f"chmod {proper:o} {path}")
        monkeypatch.setattr(machine, "LEAST_BYTES", 1 << 60)
        faults, report = await look(tmp_path)
        assert (faults, "make room" in remedy(report, "disk.space")) == ({"disk.space"}, True)


async def test_a_sidecar_that_cannot_start_is_told_with_what_it_said(tmp_path: Path) -> None:
    async with attached(tmp_path, sidecar=(sys.executable, "-c", COMPLAIN)) as local:
        await until(lambda: running(local).sidecar_error)
        faults, report = await look(tmp_path)
    assert (faults, "sidecar.log" in remedy(report, "embedded.sidecar")) == ({"embedded.sidecar"}, True)
    assert "onnxruntime is missing" in report.text()


async def test_a_port_that_something_else_has_is_told(empty: Deployment) -> None:
    await empty.announce()

    async def growl(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 some other service\r\n")
        writer.close()

    async with await asyncio.start_server(growl, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        fault, remedy = only(await empty.examine(port=port))
    assert (fault, f"--port {port + 1}" in remedy) == ("ports.http", True)
    assert (await empty.examine(port=port)).healthy


async def test_a_key_that_others_may_read_and_one_that_is_none_are_told(empty: Deployment, tmp_path: Path) -> None:
    file = tmp_path / "master.key"
    file.write_text(KEY)
    file.chmod(0o644)
    await empty.announce(transport_keys=TRANSPORTS.ids)
    other: dict[str, Any] = {"master_key": None, "master_key_file": file}
    assert only(await empty.examine(**other)) == ("files.secret", f"chmod 600 {file}")
    file.chmod(0o600)
    assert (await empty.examine(**other)).healthy
    file.write_text("no key")
    report = await empty.examine(**other)
    assert report.faults[0].id == "keys.unreadable"
    assert "redis-memory keys new" in report.faults[0].remedy
