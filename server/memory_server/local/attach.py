"""Connects a server process to the user's embedded Redis, and starts it if needed.

This module imports nothing heavy: a stdio server answers `initialize` before it needs Redis.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memory_core.errors import MemoryServiceError, StoreUnavailable
from memory_core.settings.environment import for_sidecars
from memory_server.local import DEFAULT_MODEL, TRANSPORT_VARIABLE, client, locks, transport
from memory_server.local.binaries import find_redis
from memory_server.local.paths import LocalPaths, State, log_tail, open_log, password_of, prepare, quoted, read_state

START_SECONDS = 60.0
KEYS_SECONDS = 10.0
WATCH_SECONDS = 2.0
LAUNCHES = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """How to start a supervisor. `sidecar` None means the default sidecar, an empty argv none."""

    model: str = DEFAULT_MODEL
    grace: float = 10.0
    sidecar: Sequence[str] | None = None
    device: str = "auto"
    transport_keys: str = field(default="", repr=False)

    def argv(self, paths: LocalPaths, lock: int) -> list[str]:
        command = [sys.executable, "-P", "-m", "memory_server.local.supervisor"]
        command += ["--data-dir", str(paths.data_dir), "--model", self.model, "--grace", str(self.grace)]
        command += ["--device", self.device]
        if self.sidecar is not None:
            command += ["--sidecar", json.dumps(list(self.sidecar) or None)]
        return [*command, "--lock-fd", str(lock), "--detach"]

    def environment(self) -> dict[str, str]:
        """Return the supervisor's environment: without secrets but the transport keys of its sidecar."""
        kept = for_sidecars()
        return kept | {TRANSPORT_VARIABLE: self.transport_keys} if self.transport_keys else kept


@dataclass
class LocalRedis:
    """A reference to the embedded Redis, which runs while one is open.

    `url` (`unix://`) is for redis-py, `tcp_url` for people and tools. Both contain the password.
    """

    url: str = field(repr=False)
    tcp_url: str = field(repr=False)
    socket: Path
    port: int
    password: str = field(repr=False)
    model: str
    paths: LocalPaths = field(repr=False)
    launch: Launch = field(repr=False)
    _users: int | None = field(repr=False)

    @property
    def data_dir(self) -> Path:
        return self.paths.data_dir

    def state(self) -> State | None:
        """Return what the supervisor runs now, with the sidecar's last error; None if it runs nothing."""
        return read_state(self.paths)

    async def watch(self) -> None:
        """Call `revive` every 2 s until closed. Run it as a background task."""
        while self._users is not None:
            try:
                await self.revive()
            except Exception:
                log.exception("cannot start the supervisor of the embedded Redis")
            await asyncio.sleep(WATCH_SECONDS)

    async def revive(self) -> bool:
        """Start another supervisor if it was killed; return whether it did. Raises NotSupported without Redis."""
        if self.paths.stopped.exists() or not await _ensure_supervisor(self.paths, self.launch):
            return False
        log.warning("the supervisor of the embedded Redis was not running; started another")
        return True

    async def share_keys(self) -> None:
        """Have the sidecar started again if it runs without the transport keys of this process."""
        state, keys = self.state(), self.launch.transport_keys
        if state is None or not transport.lacks(state, keys):
            return
        deadline = time.monotonic() + KEYS_SECONDS
        try:
            transport.hand_over(state, keys)
            while transport.lacks(self.state() or state, keys):
                if time.monotonic() > deadline:
                    raise TimeoutError
                await asyncio.sleep(0.02)
        except (OSError, MemoryServiceError):
            log.exception("the sidecar %s has other transport keys; run `redis-memory stop`", state.sidecar_pid)

    def close(self) -> None:
        """Release the reference. Redis stops about ten seconds after the last one is released."""
        if self._users is not None:
            os.close(self._users)
            self._users = None


async def attach(
    data_dir: Path | None = None,
    *,
    model: str = DEFAULT_MODEL,
    grace: float = 10.0,
    sidecar: Sequence[str] | None = None,
    device: str = "auto",
    transport_keys: str = "",
    within: float = START_SECONDS,
) -> LocalRedis:
    """Connect to the embedded Redis of `data_dir`, start it if it does not run, and wait until it is ready.

    `grace` is how many seconds it runs after the last user. `model`, `device`, `transport_keys` (base64, with commas)
    and `sidecar` (argv; empty for none) are of the sidecar. All have an effect only if this call starts it: compare
    `LocalRedis.model`, and call `share_keys`.

    Raises:
        NotSupported: the platform is not supported, or no Redis 8.2 with the Query Engine is installed.
        UnsafeStart: the data or socket directory belongs to another user.
        StoreUnavailable: Redis was not ready in `within` seconds; the message ends with its log.
    """
    locks.require_posix()
    paths = prepare(data_dir)
    launch = Launch(model, grace, sidecar, device, transport_keys)
    deadline = time.monotonic() + within
    users = locks.open_lock(paths.users_lock)
    try:
        await _share(users, paths, deadline)
        paths.stopped.unlink(missing_ok=True)
        return await _until_ready(paths, launch, users, deadline)
    except BaseException:
        os.close(users)
        raise


async def _share(users: int, paths: LocalPaths, deadline: float) -> None:
    """Take a shared users.lock; wait while a supervisor without users is stopping."""
    while not locks.try_shared(users):
        _check(paths, deadline)
        await asyncio.sleep(0.02)


async def _until_ready(paths: LocalPaths, launch: Launch, users: int, deadline: float) -> LocalRedis:
    launched = 0
    while True:
        if await _ensure_supervisor(paths, launch, give_up=launched >= LAUNCHES, deadline=deadline):
            launched += 1
        state = read_state(paths)
        if state is not None and state.redis_version is not None:
            local = await _answering(paths, launch, users, state)
            if local is not None:
                return local
        _check(paths, deadline)
        await asyncio.sleep(0.02)


async def _answering(paths: LocalPaths, launch: Launch, users: int, state: State) -> LocalRedis | None:
    # Importing redis-py takes .25 s; in a thread, so that the loop can answer a client meanwhile.
    await asyncio.to_thread(importlib.import_module, "redis.asyncio")
    password = password_of(paths)
    url = client.socket_url(state.socket, password)
    if await client.health(url) != "ready":
        return None
    tcp_url = client.port_url(state.port, password)
    return LocalRedis(url, tcp_url, Path(state.socket), state.port, password, state.model, paths, launch, users)


async def _ensure_supervisor(
    paths: LocalPaths, launch: Launch, *, give_up: bool = False, deadline: float | None = None
) -> bool:
    """Start a supervisor if there is none; return whether this call did.

    The child inherits the lock taken here, so exactly one of many processes starts it.
    """
    lock = locks.take_exclusive(paths.supervisor_lock)
    if lock is None:
        return False
    try:
        if give_up:
            raise _unavailable(paths, "the supervisor of the embedded Redis keeps stopping")
        paths.state.unlink(missing_ok=True)
        # Shielded: a cancelled caller must not close the lock before the child inherits it.
        await asyncio.shield(asyncio.to_thread(_launch, paths, launch, os.dup(lock)))
    finally:
        os.close(lock)
    if deadline is not None:
        _check(paths, deadline)
    return True


def _launch(paths: LocalPaths, launch: Launch, lock: int) -> None:
    """Start a supervisor that holds `lock` and detaches from this process."""
    output = -1
    try:
        find_redis()
        output = open_log(paths.supervisor_log)
        subprocess.run(  # noqa: S603
            launch.argv(paths, lock),
            env=launch.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(lock,),
            start_new_session=True,
            check=False,
        )
    finally:
        os.close(lock)
        if output >= 0:
            os.close(output)


def _check(paths: LocalPaths, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise _unavailable(paths, "the embedded Redis was not ready in time")


def _unavailable(paths: LocalPaths, what: str) -> StoreUnavailable:
    tail = "\n".join(text for log in (paths.supervisor_log, paths.redis_log) if (text := log_tail(log)))
    return StoreUnavailable(f"{what}; its logs in {quoted(paths.data_dir)} end with:\n{tail}")
