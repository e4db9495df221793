"""Kernel locks, because they tell who is alive truthfully even after `kill -9`, which pid files do not.

Every lock is an `flock` on an open file description: it ends when the last copy of the descriptor is
closed, and a descriptor handed to a child carries the lock along.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from memory_core.errors import NotSupported
from memory_server.local import THREE_WAYS_OUT

if sys.platform != "win32":
    import fcntl


def require_posix() -> None:
    """Refuse platforms without `flock`.

    Raises:
        NotSupported: on Windows; the hint names the ways out.
    """
    if sys.platform == "win32":
        raise NotSupported("the embedded Redis runs on Linux and macOS only", hint=THREE_WAYS_OUT)


def open_lock(path: Path) -> int:
    """Open (and create, 0600) a lock file. The descriptor is not inherited by children."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def try_exclusive(fd: int) -> bool:
    """Take the lock alone, at once or not at all."""
    return _try(fd, fcntl.LOCK_EX)


def try_shared(fd: int) -> bool:
    """Take the lock together with other sharers, at once or not at all."""
    return _try(fd, fcntl.LOCK_SH)


def release(fd: int) -> None:
    """Let the lock go, in every process that has a copy of the descriptor."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def take_exclusive(path: Path) -> int | None:
    """Return a descriptor that holds the lock alone, or None while somebody else has it."""
    fd = open_lock(path)
    if try_exclusive(fd):
        return fd
    os.close(fd)
    return None


def is_held(path: Path) -> bool:
    """Whether some process holds the lock at this moment."""
    if not path.exists():
        return False
    fd = take_exclusive(path)
    if fd is None:
        return True
    os.close(fd)
    return False


def _try(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
