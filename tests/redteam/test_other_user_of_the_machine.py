"""Another user of the machine looks for files of the memory that it can read, and prepares files in its way."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from mcp import Client as McpClient
from support.product import SERVE, serving, stop_redis
from support.stack import Agent, in_own_task

from memory_server.local.paths import locate, read_state

pytestmark = pytest.mark.redteam

STRANGER = 65534
SECRET = "the harbour code is seven four two"
WITH_LOOSE_UMASK = ("sh", "-c", 'umask 022; exec "$@"', "sh")
READ_ALL = """
import json, os, socket, sys
seen = []
for name in json.load(sys.stdin):
    try:
        if os.path.isdir(name):
            os.listdir(name)
        elif name.endswith(".sock"):
            socket.socket(socket.AF_UNIX).connect(name)
        else:
            open(name, "rb").read()
    except OSError:
        continue
    seen.append(name)
print(json.dumps(seen))
"""


@pytest.fixture
def open_folder() -> Generator[Path]:
    """A folder that every user can enter, as those below /tmp and /srv."""
    folder = Path(tempfile.mkdtemp(prefix="redis-memory-redteam-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def open_to_others(folder: Path) -> list[Path]:
    """Return all files and folders from `folder` on whose mode gives another user anything."""
    every = [folder, *(path for path in folder.rglob("*") if not path.is_symlink())]
    return [path for path in every if stat.S_IMODE(path.stat().st_mode) & 0o077]


def readable_by_stranger(folder: Path, *others: str) -> list[str]:
    """Return what a process of another user reads below a folder; only root can start one."""
    if os.geteuid() != 0:
        return []
    names = [str(path) for path in (folder, *folder.rglob("*"))] + list(others)
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", READ_ALL],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        check=True,
        user=STRANGER,
        group=STRANGER,
        extra_groups=[],
        cwd="/",
    )
    return json.loads(done.stdout)


def run_serve(data: Path) -> subprocess.CompletedProcess[str]:
    command = [*SERVE, "--port", "0", "--data-dir", str(data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def umask_of(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in status.splitlines() if line.startswith("Umask:"))


async def test_other_user_reads_no_file_of_a_running_memory(open_folder: Path, tmp_path: Path) -> None:
    data = open_folder / "data"
    data.mkdir(mode=0o755)
    data.chmod(0o755)
    earlier = data / "appendonlydir"
    earlier.mkdir()
    earlier.chmod(0o755)
    with (tmp_path / "log").open("w+b") as log, serving([*WITH_LOOSE_UMASK, *SERVE], data, log) as url:
        try:
            async with in_own_task(McpClient(f"{url}?agent=ann")) as client:
                await Agent(client).store(SECRET)
            state = read_state(locate(data))
            assert state is not None
            assert state.redis_pid is not None
            assert state.sidecar_pid is not None
            stored = [path for path in data.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
            assert stored, "the memory is in the append-only file"
            assert readable_by_stranger(data, state.socket) == []
            assert open_to_others(data) == []
            pids = (state.supervisor_pid, state.redis_pid, state.sidecar_pid)
            assert [umask_of(pid) for pid in pids] == ["0077"] * 3
        finally:
            stop_redis(data)


def test_data_directory_that_others_can_write_to_is_refused(open_folder: Path) -> None:
    data = open_folder / "data"
    data.mkdir()
    data.chmod(0o777)
    refused = run_serve(data)
    assert refused.returncode == 78
    assert "other users may write" in refused.stderr
    assert list(data.iterdir()) == []


def test_link_in_the_data_directory_is_refused(open_folder: Path) -> None:
    data, victim = open_folder / "data", open_folder / "victim"
    data.mkdir(mode=0o700)
    victim.write_text("kept")
    (data / "supervisor.log").symlink_to(victim)
    refused = run_serve(data)
    assert refused.returncode == 78
    assert "is a link" in refused.stderr
    assert victim.read_text() == "kept"
