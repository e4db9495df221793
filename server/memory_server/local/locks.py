"""File locks. Unlike pid files, they show which process is alive even after `kill -9`.

Each lock is an `flock` on an open file description. It ends when the last copy of the descriptor is closed; a child
that inherits the descriptor holds the lock too.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from memory_core.crypto.secret_files import open_private
from memory_core.errors import NotSupported
from memory_server.local import ALTERNATIVES

if sys.platform != "win32":
    import fcntl

_LOOK_SECONDS = 0.02


def require_posix() -> None:
    """Refuse platforms without `flock`. Raises NotSupported: on Windows; the hint names the ways out."""
    if sys.platform == "win32":
        raise NotSupported("the embedded Redis runs on Linux and macOS only", hint=ALTERNATIVES)


def open_lock(path: Path) -> int:
    """Open a lock file, created with mode 0600. Children do not inherit the descriptor."""
    return open_private(path)


def try_exclusive(fd: int) -> bool:
    return _try(fd, fcntl.LOCK_EX)


def try_shared(fd: int) -> bool:
    return _try(fd, fcntl.LOCK_SH)


def release(fd: int) -> None:
    """Release the lock in every process that has a copy of the descriptor."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def take_exclusive(path: Path) -> int | None:
    """Return a descriptor that holds the lock exclusively; None if another process holds it."""
    fd = open_lock(path)
    if try_exclusive(fd):
        return fd
    os.close(fd)
    return None


def is_held(path: Path) -> bool:
    """Whether a process holds the lock exclusively. Writes nothing, so a read-only folder will do."""
    fd = _open_to_look(path)
    if fd is None:
        return False
    try:
        return not try_shared(fd)  # two that look at once do not see each other
    finally:
        os.close(fd)


def is_shared(path: Path) -> bool:
    """Whether a process holds the lock, shared or exclusively. Looks twice, past another process that only looks."""
    fd = _open_to_look(path)
    if fd is None:
        return False
    try:
        if try_exclusive(fd):
            return False
        time.sleep(_LOOK_SECONDS)
        return not try_exclusive(fd)
    finally:
        os.close(fd)


def _try(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_to_look(path: Path) -> int | None:
    """Open a lock without changing anything; None if it cannot be opened."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
