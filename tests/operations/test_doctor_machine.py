"""The doctor's checks of this machine: the embedded Redis, file permissions, disk space, ports, key files."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.doctor_helpers import KEY, TRANSPORTS, Deployment, empty_deployment, only_fault
from support.local_helpers import attached, running, until
from support.stack import in_own_task

from memory_core.settings.settings import Settings
from memory_server.operations.doctor import examine
from memory_server.operations.health import machine
from memory_server.operations.health.report import DoctorReport

COMPLAIN = "import sys; print('onnxruntime is missing', file=sys.stderr); sys.exit(78)"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def empty(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Deployment]:
    """An empty Redis."""
    async with in_own_task(empty_deployment(tmp_path_factory.mktemp("empty"))) as found:
        yield found


async def examine_folder(folder: Path) -> tuple[set[str], DoctorReport]:
    """Examine the embedded Redis of a folder; return its faults, except the missing sidecar, and the report."""
    report = await examine(Settings.load(data_dir=folder, port=0))
    return {fault.id for fault in report.faults} - {"sidecars.alive"}, report


def remedy(report: DoctorReport, fault: str) -> str:
    """Return the remedy of a fault."""
    return next(found.remedy for found in report.faults if found.id == fault)


async def test_stopped_redis_is_reported_with_available_binaries(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    faults, report = await examine_folder(tmp_path)
    assert faults == {"embedded.supervisor"}
    assert remedy(report, "embedded.supervisor") == f"start it with redis-memory serve --data-dir {tmp_path}"
    assert any(finding.id == "embedded.binaries" for finding in report.findings)


async def test_permissions_and_disk_space_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with attached(tmp_path) as local:
        faults, report = await examine_folder(tmp_path)
        assert (faults, report.redis["port"]) == (set(), running(local).port)
        for path, mode, fault in ((local.paths.password, 0o640, "files.secret"), (tmp_path, 0o777, "files.folder")):
            proper = path.stat().st_mode & 0o777
            path.chmod(mode)
            faults, report = await examine_folder(tmp_path)
            path.chmod(proper)
            assert (faults, remedy(report, fault)) == ({fault}, f"chmod {proper:o} {path}")
        monkeypatch.setattr(machine, "MINIMUM_FREE_BYTES", 1 << 60)
        faults, report = await examine_folder(tmp_path)
        assert (faults, "free disk space" in remedy(report, "disk.space")) == ({"disk.space"}, True)


async def test_failed_sidecar_is_reported_with_its_error(tmp_path: Path) -> None:
    async with attached(tmp_path, sidecar=(sys.executable, "-c", COMPLAIN)) as local:
        await until(lambda: running(local).sidecar_error)
        faults, report = await examine_folder(tmp_path)
    assert (faults, "sidecar.log" in remedy(report, "embedded.sidecar")) == ({"embedded.sidecar"}, True)
    assert "onnxruntime is missing" in report.text()


async def test_port_of_another_program_is_reported(empty: Deployment) -> None:
    await empty.announce()

    async def growl(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 some other service\r\n")
        writer.close()

    async with await asyncio.start_server(growl, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        fault, remedy = only_fault(await empty.examine(port=port))
    assert (fault, f"--port {port + 1}" in remedy) == ("ports.http", True)
    assert (await empty.examine(port=port)).healthy


async def test_exposed_and_invalid_key_files_are_reported(empty: Deployment, tmp_path: Path) -> None:
    file = tmp_path / "master.key"
    file.write_text(KEY)
    file.chmod(0o644)
    await empty.announce(transport_keys=TRANSPORTS.ids)
    other: dict[str, Any] = {"master_key": None, "master_key_file": file}
    assert only_fault(await empty.examine(**other)) == ("files.secret", f"chmod 600 {file}")
    file.chmod(0o600)
    assert (await empty.examine(**other)).healthy
    file.write_text("no key")
    report = await empty.examine(**other)
    assert report.faults[0].id == "keys.unreadable"
    assert "redis-memory keys new" in report.faults[0].remedy
