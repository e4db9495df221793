"""Simulates a power loss: what Redis wrote and did not sync is gone.

A preloaded library (power.c) records the length of each file at its last sync. At the cut Redis is killed, and each
of its files is truncated to that length, or sometimes to a random byte after it. Everything synced stays, renamed
files keep their new names, and bytes never change their order.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("power.c")


@cache
def compiler() -> str | None:
    """The path of a C compiler, or None if there is none and no power can be cut."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path) -> Path:
    """Compile the library into a folder."""
    library = folder / "power.so"
    cc = compiler()
    assert cc is not None
    subprocess.run([cc, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
    return library


@dataclass(frozen=True, slots=True)
class Cut:
    """How many of the unsynced bytes a cut removed."""

    lost: int
    unsynced: int


def cut(data: Path, log: Path, chance: random.Random | None = None) -> Cut:
    """Truncate the files of a killed Redis to what was synced; with `chance`, sometimes to a later byte."""
    synced = _synced(log)
    lost = unsynced = 0
    for path in filter(Path.is_file, data.rglob("*.aof")):
        size = path.stat().st_size
        safe = min(synced.get(path.stat().st_ino, 0), size)
        left = safe if chance is None or chance.random() < 0.5 else chance.randint(safe, size)
        unsynced += size - safe
        lost += size - left
        if left < size:
            with path.open("r+b") as file:
                file.truncate(left)
    return Cut(lost, unsynced)


def tear(data: Path, chance: random.Random) -> int:
    """Append the beginning of a command to the file, as an interrupted write does; return its length."""
    newest = max(data.rglob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
    command = b"*3\r\n$3\r\nSET\r\n$10\r\nrm:torn:of\r\n$8\r\nnobody's\r\n"
    part = command[: chance.randint(1, len(command) - 1)]
    with newest.open("ab") as file:
        file.write(part)
    return len(part)


def _synced(log: Path) -> dict[int, int]:
    """The length of each file, by inode, at its last sync."""
    found: dict[int, int] = {}
    if log.exists():
        for line in log.read_text().splitlines():
            inode, length = line.split()
            found[int(inode)] = int(length)
    return found
