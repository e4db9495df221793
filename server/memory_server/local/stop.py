"""Stops the embedded Redis, for `redis-memory stop`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from memory_core.crypto.secret_files import write_private
from memory_core.errors import StoreUnavailable
from memory_server.local import client, locks
from memory_server.local.paths import LocalPaths, check_folder, locate, password_of, read_address, read_state

STOP_SECONDS = 40.0


def stop(data_dir: Path | None = None) -> bool:
    """Stop Redis and the sidecar, also under running servers; return False if nothing was running.

    Blocks up to 40 s: call it outside an event loop or in a thread.

    Raises:
        NotSupported: the platform has no embedded Redis. InvalidArgument: the data directory is a file.
        StoreUnavailable: it did not stop in time.
    """
    locks.require_posix()
    paths = locate(data_dir)
    check_folder(paths)
    if not paths.supervisor_lock.exists():
        return False
    deadline = time.monotonic() + STOP_SECONDS
    asked_pid: int | None = None
    while (lock := locks.take_exclusive(paths.supervisor_lock)) is None:
        asked_pid = _ask(paths, asked_pid)
        _wait(paths, deadline)
    try:
        return _stop_orphan(paths, deadline) or asked_pid is not None
    finally:
        os.close(lock)


def _ask(paths: LocalPaths, asked_pid: int | None) -> int | None:
    """Ask a supervisor to stop, once; return its pid. The held lock proves that the pid in state.json is valid."""
    state = read_state(paths)
    if state is None or state.supervisor_pid == asked_pid:
        return asked_pid
    try:
        os.kill(state.supervisor_pid, signal.SIGTERM)
    except ProcessLookupError:
        return asked_pid
    return state.supervisor_pid


def _stop_orphan(paths: LocalPaths, deadline: float) -> bool:
    """Shut down a Redis whose supervisor was killed. The caller holds supervisor.lock."""
    found = False
    while locks.is_held(paths.redis_lock):
        found = True
        write_private(paths.stopped, "")
        asyncio.run(client.shut_down_orphan(read_address(paths), password_of(paths)))
        _wait(paths, deadline)
    return found


def _wait(paths: LocalPaths, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise StoreUnavailable(f"the embedded Redis did not stop within {STOP_SECONDS:.0f} s")
    time.sleep(0.05)
