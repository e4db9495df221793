"""Joins a server process to the user's embedded Redis, starting it if need be.

Importing this module is cheap: a stdio server answers `initialize` before it needs Redis.
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

from memory_core.errors import StoreUnavailable
from memory_server.local import DEFAULT_MODEL, MASTER_KEYS, TRANSPORT_VARIABLE, locks
from memory_server.local.paths import (
    LocalPaths,
    State,
    log_tail,
    open_log,
    password_of,
    prepare,
    read_state,
    short,
)

START_SECONDS = 60.0
WATCH_SECONDS = 2.0
LAUNCHES = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """How to start a supervisor: `sidecar` None is the ordinary one, an empty argv none at all."""

    model: str = DEFAULT_MODEL
    grace: float = 10.0
    sidecar: Sequence[str] | None = None
    device: str = "auto"
    transport_key: str | None = field(default=None, repr=False)

    def argv(self, paths: LocalPaths, lock: int) -> list[str]:
        """Return the supervisor's command line."""
        command = [sys.executable, "-P", "-m", "memory_server.local.supervisor"]
        command += ["--data-dir", str(paths.data_dir), "--model", self.model, "--grace", str(self.grace)]
        command += ["--device", self.device]
        if self.sidecar is not None:
            command += ["--sidecar", json.dumps(list(self.sidecar) or None)]
        return [*command, "--lock-fd", str(lock), "--detach"]

    def environment(self) -> dict[str, str]:
        """Return what the supervisor inherits: no master key, and of the keys only what its sidecar needs."""
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(MASTER_KEYS)}
        return kept if self.transport_key is None else kept | {TRANSPORT_VARIABLE: self.transport_key}


@dataclass
class LocalRedis:
    """A user's hold on the embedded Redis: while it is open, Redis stays.

    `url` is for redis-py (`unix://`), `tcp_url` for people and tools; both carry the password.
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
        """Where the data, the logs and state.json are."""
        return self.paths.data_dir

    def state(self) -> State | None:
        """What the supervisor runs now, with the sidecar's last error; None while it runs nothing."""
        return read_state(self.paths)

    async def watch(self) -> None:
        """Revive every 2 s; run it as a background task. Ends when cancelled or closed."""
        while self._users is not None:
            try:
                await self.revive()
            except Exception:
                log.exception("cannot start the supervisor of the embedded Redis")
            await asyncio.sleep(WATCH_SECONDS)

    async def revive(self) -> bool:
        """Start another supervisor if it was killed and nobody asked to stop; True when this call did.

        Raises:
            NotSupported: there is no longer a Redis to start.
        """
        if self.paths.stopped.exists() or not await _ensure_supervisor(self.paths, self.launch):
            return False
        log.warning("the supervisor of the embedded Redis was gone; started another")
        return True

    def close(self) -> None:
        """Leave. Redis stops about ten seconds after the last user left."""
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
    transport_key: str | None = None,
    within: float = START_SECONDS,
) -> LocalRedis:
    """Join the embedded Redis of `data_dir`, starting it if nobody has; wait until it is ready.

    `model`, `device` and `transport_key` (of the sidecar), `grace` (seconds it stays after its last user) and
    `sidecar` (argv; empty for none) matter only to whoever starts it: compare `LocalRedis.model`.

    Raises:
        NotSupported: this platform cannot, or there is no Redis 8.2 with the Query Engine to start.
        UnsafeStart: the data or socket directory is not the user's own.
        StoreUnavailable: Redis was not ready in `within` seconds; the message ends with its log.
    """
    locks.require_posix()
    paths = prepare(data_dir)
    launch = Launch(model, grace, sidecar, device, transport_key)
    deadline = time.monotonic() + within
    users = locks.open_lock(paths.users_lock)
    try:
        await _share(users, paths, deadline)
        paths.stopped.unlink(missing_ok=True)
        return await _until_ready(paths, launch, users, deadline)
    except BaseException:
        os.close(users)
        raise


def attach_blocking(data_dir: Path | None = None, *, model: str = DEFAULT_MODEL) -> LocalRedis:
    """`attach` for code without an event loop, such as the CLI."""
    return asyncio.run(attach(data_dir, model=model))


async def _share(users: int, paths: LocalPaths, deadline: float) -> None:
    """Become a user; waits while a supervisor that found nobody left is stopping."""
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
    """Return the hold if Redis answers now."""
    # Loading redis-py takes .25 s; a thread lets the loop answer a client meanwhile.
    await asyncio.to_thread(importlib.import_module, "redis.asyncio")
    from memory_server.local import client

    password = password_of(paths)
    url = client.socket_url(state.socket, password)
    if await client.health(url) != "ready":
        return None
    tcp_url = client.port_url(state.port, password)
    return LocalRedis(url, tcp_url, Path(state.socket), state.port, password, state.model, paths, launch, users)


async def _ensure_supervisor(
    paths: LocalPaths, launch: Launch, *, give_up: bool = False, deadline: float | None = None
) -> bool:
    """Start a supervisor if there is none; True when this call did so.

    The lock is taken here and handed over to the child, so of many processes exactly one starts it.
    """
    lock = locks.take_exclusive(paths.supervisor_lock)
    if lock is None:
        return False
    try:
        if give_up:
            raise _unavailable(paths, "the supervisor of the embedded Redis does not stay up")
        paths.state.unlink(missing_ok=True)
        # Shielded: a cancelled caller must not close the lock under the child that gets it.
        await asyncio.shield(asyncio.to_thread(_launch, paths, launch, os.dup(lock)))
    finally:
        os.close(lock)
    if deadline is not None:
        _check(paths, deadline)
    return True


def _launch(paths: LocalPaths, launch: Launch, lock: int) -> None:
    """Start a supervisor that holds `lock`; it leaves this process's tree at once."""
    from memory_server.local.binaries import find_redis

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
    said = "\n".join(text for log in (paths.supervisor_log, paths.redis_log) if (text := log_tail(log)))
    return StoreUnavailable(f"{what}; its logs in {short(paths.data_dir)} end with:\n{said}")
