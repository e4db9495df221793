"""Where the HTTP servers of a data directory listen, and the sessions of its stdio servers.

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from memory_core.crypto.secret_files import create_private, private_folder, read_private
from memory_core.errors import UnsafeStart
from memory_server.local import locks
from memory_server.local.paths import LocalPaths

_MOST_BYTES = 4096
_MOST_FILES = 1000
_SERVER, _SESSION = ".json", ".session"
_SESSION_DAYS = 7.0
"""A killed server's session is silent long before this, so its file has no use any more."""


@dataclass(frozen=True)
class RunningServer:
    """An HTTP server: the URL of its root page, its process, and which Redis it uses ("" for the embedded one)."""

    url: str
    pid: int
    started_at: float
    redis: str = ""


@dataclass(frozen=True)
class StdioSession:
    """The session of a stdio server's client, whose it is, and which Redis it uses ("" for the embedded one)."""

    session: str
    namespace: str
    agent: str
    redis: str


@contextmanager
def announced(paths: LocalPaths, url: str, redis: str) -> Generator[RunningServer]:
    """Write where this process listens, and remove it when the block ends.

    Raises:
        UnsafeStart: the folder cannot be written.
    """
    server = RunningServer(url, os.getpid(), time.time(), redis)
    with _written(paths, server, _SERVER):
        yield server


@contextmanager
def stdio_session(paths: LocalPaths, own: StdioSession) -> Generator[list[str]]:
    """Write this process's session, and remove it when the block ends.

    Yields the sessions of killed processes of the same agent, and removes their files.

    Raises:
        UnsafeStart: the folder cannot be written.
    """
    ended = list[str]()
    for file in _files(paths, _SESSION):
        if not locks.is_held(file) and (found := _read_session(file)) and replace(found, session=own.session) == own:
            ended.append(found.session)
            file.unlink(missing_ok=True)
    with _written(paths, own, _SESSION):
        yield ended


@contextmanager
def _written(paths: LocalPaths, record: RunningServer | StdioSession, suffix: str) -> Generator[None]:
    """Write a record with a lock on its file, and remove it when the block ends. Raises UnsafeStart."""
    try:
        private_folder(paths.data_dir)
        private_folder(paths.servers)
        _remove_stale(paths)
        file = paths.servers / f"{os.getpid()}-{time.time_ns()}{suffix}"
        draft = file.with_suffix(".new")
        fd = create_private(draft)
    except OSError as error:
        raise UnsafeStart(f"cannot use the data directory {paths.data_dir}: {error.strerror}") from error
    try:
        locks.try_exclusive(fd)
        os.write(fd, json.dumps(asdict(record) | {"inode": os.fstat(fd).st_ino}).encode())
        draft.replace(file)  # complete and locked before anybody sees it
        yield
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


def _files(paths: LocalPaths, suffix: str = _SERVER) -> list[Path]:
    with suppress(OSError):
        return [
            one for _, one in zip(range(_MOST_FILES), paths.servers.iterdir(), strict=False) if one.suffix == suffix
        ]
    return []


def _remove_stale(paths: LocalPaths) -> None:
    for file in _files(paths):
        if not locks.is_held(file):
            file.unlink(missing_ok=True)
    for file in _files(paths, _SESSION):
        with suppress(OSError):
            is_old = file.lstat().st_mtime < time.time() - _SESSION_DAYS * 86_400
            if is_old and not locks.is_held(file):
                file.unlink()


def _read(file: Path) -> RunningServer | None:
    """Read a file. Ignores fields of newer releases, and files that are not ours."""
    try:
        known = _fields(file)
        return RunningServer(str(known["url"]), int(known["pid"]), float(known["started_at"]), str(known["redis"]))
    except (OSError, ValueError, TypeError, KeyError, UnsafeStart):
        return None


def _read_session(file: Path) -> StdioSession | None:
    try:
        known = _fields(file)
        if known["inode"] != file.lstat().st_ino:  # a copy of a data directory, whose processes are not these
            return None
        return StdioSession(*(str(known[name]) for name in ("session", "namespace", "agent", "redis")))
    except (OSError, ValueError, TypeError, KeyError, UnsafeStart):
        return None


def _fields(file: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(read_private(file, _MOST_BYTES)))
