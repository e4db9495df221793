"""Where the HTTP servers of a data directory listen.

Each server writes a file and holds a lock on it while it runs, so a file that a killed server left is recognised, also
when another process has its pid.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from memory_core.crypto.secret_files import create_private, private_folder
from memory_core.errors import UnsafeStart
from memory_server.local import locks
from memory_server.local.paths import LocalPaths

_MOST_BYTES = 4096
_MOST_FILES = 1000


@dataclass(frozen=True)
class RunningServer:
    """An HTTP server: the URL of its root page, its process, and which Redis it uses ("" for the embedded one)."""

    url: str
    pid: int
    started_at: float
    redis: str = ""


@contextmanager
def announced(paths: LocalPaths, url: str, redis: str) -> Generator[RunningServer]:
    """Write where this process listens, and remove it when the block ends.

    Raises:
        UnsafeStart: the folder cannot be written.
    """
    server = RunningServer(url, os.getpid(), time.time(), redis)
    try:
        private_folder(paths.data_dir)
        private_folder(paths.servers)
        _remove_stale(paths)
        file = paths.servers / f"{server.pid}-{time.time_ns()}.json"
        draft = file.with_suffix(".new")
        fd = create_private(draft)
    except OSError as error:
        raise UnsafeStart(f"cannot use the data directory {paths.data_dir}: {error.strerror}") from error
    try:
        locks.try_exclusive(fd)
        os.write(fd, json.dumps(asdict(server)).encode())
        draft.replace(file)  # complete and locked before anybody sees it
        yield server
    finally:
        for path in (draft, file):
            path.unlink(missing_ok=True)
        os.close(fd)


def running_servers(paths: LocalPaths, redis: Collection[str] = ("",)) -> list[RunningServer]:
    """Return the servers of a data directory that use one of these Redis, the newest first. Changes nothing."""
    if sys.platform == "win32":
        return []
    found = (_read(file) for file in _files(paths) if locks.is_held(file))
    return sorted((one for one in found if one and one.redis in redis), key=lambda one: one.started_at, reverse=True)


def _files(paths: LocalPaths, suffix: str = ".json") -> list[Path]:
    with suppress(OSError):
        return [
            one for _, one in zip(range(_MOST_FILES), paths.servers.iterdir(), strict=False) if one.suffix == suffix
        ]
    return []


def _remove_stale(paths: LocalPaths) -> None:
    for file in _files(paths):
        if not locks.is_held(file):
            file.unlink(missing_ok=True)


def _read(file: Path) -> RunningServer | None:
    """Read a file. Ignores fields of newer releases, and files that are not ours."""
    try:
        with file.open("rb") as opened:
            found: Any = json.loads(opened.read(_MOST_BYTES))
        known = cast("dict[str, Any]", found)
        return RunningServer(str(known["url"]), int(known["pid"]), float(known["started_at"]), str(known["redis"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
