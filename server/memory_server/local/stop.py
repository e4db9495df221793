"""Stops the embedded Redis on request, for `redis-memory stop`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from memory_core.errors import StoreUnavailable
from memory_server.local import locks
from memory_server.local.paths import LocalPaths, locate, password_of, read_address, read_state, write_private

STOP_SECONDS = 40.0


def stop(data_dir: Path | None = None) -> bool:
    """Stop Redis and the sidecar; False when nothing ran. Servers that use them lose their store.

    Blocks up to 40 s; call it outside an event loop or in a thread.

    Raises:
        NotSupported: this platform has no embedded Redis.
        StoreUnavailable: it did not end in time.
    """
    locks.require_posix()
    paths = locate(data_dir)
    if not paths.supervisor_lock.exists():
        return False
    deadline = time.monotonic() + STOP_SECONDS
    told: int | None = None
    while (lock := locks.take_exclusive(paths.supervisor_lock)) is None:
        told = _tell(paths, told)
        _wait(paths, deadline)
    try:
        return _stop_orphan(paths, deadline) or told is not None
    finally:
        os.close(lock)


def _tell(paths: LocalPaths, told: int | None) -> int | None:
    """Ask the supervisor, once, to stop: the held lock proves that the pid in state.json is its own."""
    state = read_state(paths)
    if state is None or state.supervisor_pid == told:
        return told
    try:
        os.kill(state.supervisor_pid, signal.SIGTERM)
    except ProcessLookupError:
        return told
    return state.supervisor_pid


def _stop_orphan(paths: LocalPaths, deadline: float) -> bool:
    """Shut down a Redis whose supervisor was killed; the caller holds supervisor.lock."""
    from memory_server.local import client

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
