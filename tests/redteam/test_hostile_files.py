"""A file from elsewhere cannot hang an import or fill the memory of the machine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Stack

pytestmark = pytest.mark.redteam
_MIB = 1 << 20
_UNPACKED = 1300 * _MIB
_SECONDS = 40.0
_MOST_MIB = 700


@dataclass(frozen=True, slots=True)
class Ended:
    """Exit code, output and peak memory of a command; code None if it had to be killed."""

    code: int | None
    output: str
    peak_mib: int


def _run(stack: Stack, *arguments: object) -> Ended:
    environment = {**os.environ, "REDIS_URL": stack.redis.url_of(SERVER), "MEMORY_MASTER_KEY": MASTER_KEY}
    words = [str(word) for word in arguments]
    process = subprocess.Popen(
        [sys.executable, "-m", "memory_server", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline, ended = time.monotonic() + _SECONDS, None
    while not (found := os.wait4(process.pid, os.WNOHANG))[0]:
        if ended is None and time.monotonic() > deadline:
            process.kill()
            ended = False
        time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(found[1])
    assert process.stdout is not None
    with process.stdout as output:
        text = output.read().decode(errors="replace")
    return Ended(None if ended is False else process.returncode, text, found[2].ru_maxrss >> 10)


async def _import(stack: Stack, path: Path, namespace: str, *options: str) -> Ended:
    return await asyncio.to_thread(_run, stack, "import", path, "--agent", "ann", "--namespace", namespace, *options)


def _zst(path: Path, unit: bytes) -> Path:
    with zstandard.open(path, "wb") as file:
        for _ in range(_UNPACKED // _MIB):
            file.write(unit * (_MIB // len(unit)))
    assert path.stat().st_size < _MIB
    return path


def _zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(6):
            with archive.open(f"conversations-{number}.json", "w") as file:
                for _ in range(100):
                    file.write(b" " * _MIB)
    return path


BOMBS: dict[str, Callable[[Path], Path]] = {
    "one line": lambda folder: _zst(folder / "a.jsonl.zst", b" "),
    "many lines": lambda folder: _zst(folder / "a.jsonl.zst", b"{}\n"),
    "document": lambda folder: _zst(folder / "a.json.zst", b"["),
    "archive": lambda folder: _zip(folder / "a.zip"),
}


@pytest.mark.parametrize("kind", BOMBS)
async def test_file_that_unpacks_to_far_more_is_refused(
    stack: Stack, namespace: str, tmp_path: Path, kind: str
) -> None:
    ended = await _import(stack, BOMBS[kind](tmp_path), namespace)
    assert ended.code == 78, ended
    assert ended.peak_mib < _MOST_MIB


async def test_document_of_endless_lists_is_refused(stack: Stack, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"type":"entity","name":"a","entityType":"b","observations":["c"]}\n')
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b"[" + b"[]," * (20 * _MIB // 3) + b"1]\n")
    ended = await _import(stack, tmp_path / "a.jsonl", namespace)
    assert ended.code == 78, ended
    assert ended.peak_mib < _MOST_MIB


ENDLESS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.md"])
async def test_import_refuses_what_is_no_regular_file(
    stack: Stack, namespace: str, tmp_path: Path, kind: str, name: str
) -> None:
    ENDLESS[kind](tmp_path / name)
    ended = await _import(stack, tmp_path / name, namespace)
    assert ended.code == 78, ended
    assert "neither a file nor a folder" in ended.output


@pytest.mark.parametrize("name", ["a.md", "conversations.json"])
async def test_pipe_in_a_folder_does_not_hang_an_import(
    stack: Stack, namespace: str, tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "b.md").write_text("The boat needs paint.")
    ended = await _import(stack, tmp_path, namespace)
    assert ended.code == 78, ended


@pytest.mark.parametrize("kind", ["pipe", "endless device"])
async def test_audit_check_refuses_what_is_no_regular_file(stack: Stack, tmp_path: Path, kind: str) -> None:
    ENDLESS[kind](tmp_path / "a.jsonl")
    ended = await asyncio.to_thread(_run, stack, "audit", "verify", "--file", tmp_path / "a.jsonl")
    assert ended.code == 78, ended


@pytest.mark.parametrize("unit", [b" ", b"{}\n"])
async def test_audit_export_that_unpacks_to_far_more_is_refused(stack: Stack, tmp_path: Path, unit: bytes) -> None:
    ended = await asyncio.to_thread(_run, stack, "audit", "verify", "--file", _zst(tmp_path / "a.zst", unit))
    assert ended.code == 78, ended
    assert ended.peak_mib < _MOST_MIB


@pytest.mark.parametrize("kind", ["pipe", "endless device"])
async def test_config_that_is_no_regular_file_is_refused(stack: Stack, tmp_path: Path, kind: str) -> None:
    ENDLESS[kind](tmp_path / "config.json")
    ended = await asyncio.to_thread(_run, stack, "status", "--config", tmp_path / "config.json")
    assert ended.code == 78, ended


@pytest.mark.parametrize("content", [b" " * (16 * _MIB), b"[" * 100_000, b"[" + b"[]," * _MIB + b"1]"])
async def test_config_that_is_too_long_or_too_deep_is_refused(stack: Stack, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    ended = await asyncio.to_thread(_run, stack, "status", "--config", tmp_path / "config.json")
    assert ended.code == 78, ended
    assert "config file" in ended.output
