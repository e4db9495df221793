"""Starts embedded Redis servers for tests in separate data directories, and always stops them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from memory_server.local import locks
from memory_server.local.attach import LocalRedis, attach
from memory_server.local.paths import State
from memory_server.local.stop import stop

# A substitute for the embedder that ends with its supervisor.
SIDECAR = (
    sys.executable,
    "-c",
    "import os, time\nwhile str(os.getppid()) == os.environ['REDIS_MEMORY_PARENT']: time.sleep(0.05)",
)

ATTACH_AND_WAIT = """
import asyncio, sys
from pathlib import Path
from redis.asyncio import Redis
from memory_server.local.attach import attach

async def main():
    local = await attach(Path(sys.argv[1]), sidecar=())
    async with Redis.from_url(local.url) as redis:
        run_id = (await redis.info("server"))["run_id"]
    print(run_id, local.state().supervisor_pid, flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


async def until(condition: Callable[[], object], within: float = 15.0) -> None:
    """Wait until `condition` holds; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


def is_shared(lock: Path) -> bool:
    """Whether a process holds a lock file shared, which `locks.is_held` does not see."""
    if not lock.exists():
        return False
    fd = locks.take_exclusive(lock)
    if fd is not None:
        os.close(fd)
    return fd is None


@asynccontextmanager
async def attached(data_dir: Path, *, grace: float = 10.0, sidecar: tuple[str, ...] = ()) -> AsyncGenerator[LocalRedis]:
    """Attach; afterwards release the reference and stop Redis."""
    local = await attach(data_dir, grace=grace, sidecar=sidecar, within=20)
    try:
        yield local
    finally:
        local.close()
        await asyncio.to_thread(stop, data_dir)


def running(local: LocalRedis) -> State:
    """Return what the supervisor runs now; fail if it runs nothing."""
    state = local.state()
    assert state is not None
    return state


async def run_id(local: LocalRedis) -> str:
    """Return the run id of the Redis process that answers."""
    async with Redis.from_url(local.url) as redis:
        return str((await redis.info("server"))["run_id"])


async def put(local: LocalRedis, key: str, value: str) -> None:
    """Write one key and wait for the acknowledgement."""
    async with Redis.from_url(local.url) as redis:
        await redis.set(key, value)


async def get(local: LocalRedis, key: str) -> str | None:
    """Read one key."""
    async with Redis.from_url(local.url, decode_responses=True) as redis:
        found = await redis.get(key)
        assert found is None or isinstance(found, str)
        return found


def kill(pid: int | None) -> None:
    """Kill a process that the test started, as `kill -9` does."""
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def stop_everything(data_dir: Path) -> None:
    """Stop the Redis of a data directory."""
    await asyncio.to_thread(stop, data_dir)
