"""The daemon that keeps one Redis and one sidecar running while a server process uses them.

`attach` starts it as `python -m memory_server.local.supervisor --data-dir DIR`. It holds supervisor.lock, and stops on
SIGTERM or when no process has held users.lock for a while.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memory_core.cancellation import cancel
from memory_core.crypto.secret_files import restrict_umask, write_private
from memory_core.errors import MemoryServiceError
from memory_core.settings.environment import for_programs, for_sidecars
from memory_server.local import DEFAULT_MODEL, TRANSPORT_VARIABLE, client, locks, transport
from memory_server.local.binaries import find_redis
from memory_server.local.children import Backoff, Children
from memory_server.local.config import choose_port, render_config
from memory_server.local.paths import (
    Address,
    LocalPaths,
    State,
    choose_socket,
    log_tail,
    make_integrity_key,
    password_of,
    prepare,
    read_address,
    write_record,
)

EX_CONFIG = 78
PARENT_VARIABLE = "REDIS_MEMORY_PARENT"
CONFIG_RETRY_SECONDS = 30.0
STEADY_SECONDS = 5.0
REDIS_PATIENCE = 30.0
SIDECAR_PATIENCE = 5.0
RECORD_SECONDS = 1.0

log = logging.getLogger("redis-memory.supervisor")


@dataclass(frozen=True)
class Options:
    """What a supervisor runs. `sidecar` is an argv, `()` for none."""

    paths: LocalPaths
    model: str
    grace: float
    sidecar: tuple[str, ...]


def sidecar_command(model: str, device: str = "auto") -> list[str]:
    """Return the argv of the embedding sidecar. Its environment has REDIS_URL and REDIS_MEMORY_PARENT."""
    # -P: the working directory must not shadow installed packages.
    command = [sys.executable, "-P", "-m", "memory_embedder", "--exit-with-parent", "--model", model]
    return command if device == "auto" else [*command, "--device", device]


class Supervisor:
    """One run of the daemon. The caller holds supervisor.lock."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.paths = options.paths
        self.password = password_of(self.paths)
        make_integrity_key(self.paths)
        self._transport_keys = _take_keys()
        self.children = Children()
        self.redis: subprocess.Popen[bytes] | None = None
        self.sidecar: subprocess.Popen[bytes] | None = None
        self.redis_ready = asyncio.Event()
        self._is_recorded = True
        self.users_fd = locks.open_lock(self.paths.users_lock)
        address = self._choose_address()
        self.state = State(os.getpid(), address.socket, address.port, options.model, time.time())
        self.state = replace(self.state, transport_keys=transport.identify(self._transport_keys))

    async def run(self) -> None:
        """Keep Redis and the sidecar running until the last user leaves or SIGTERM arrives, then stop them in order."""
        stop_requested = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop_requested.set)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._receive_keys)
        self._record()  # after the handlers: a reader of the pid may send SIGTERM
        jobs = [
            asyncio.create_task(job)
            for job in (
                stop_requested.wait(),
                self._until_unused(),
                self._keep_redis(),
                self._keep_sidecar(),
                self._keep_recorded(),
            )
        ]
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            if stop_requested.is_set():
                # Before the lock is released: watching servers must not start the next supervisor.
                with suppress(OSError):  # a full disk
                    write_private(self.paths.stopped, "")
            for job in done:
                job.result()
        finally:
            await cancel(jobs)
            await self._stop()

    def _receive_keys(self) -> None:
        """Start the sidecar again with the transport keys that a server handed over."""
        keys = transport.merge(transport.receive(self.state.socket), self._transport_keys)
        if keys == self._transport_keys:
            return
        log.info("a server has other transport keys; starting the sidecar again")
        self._transport_keys = keys
        self._record(transport_keys=transport.identify(keys))
        if self.sidecar is not None and self.sidecar.poll() is None:
            self.sidecar.terminate()

    async def _until_unused(self) -> None:
        """Return after `grace` seconds without users, holding users.lock, on which new users wait."""
        pause = min(1.0, max(0.02, self.options.grace / 4))
        unused_since: float | None = None
        while True:
            if not locks.try_exclusive(self.users_fd):
                unused_since = None
            else:
                unused_since = unused_since or time.monotonic()
                if time.monotonic() - unused_since >= self.options.grace:
                    log.info("the last user left")
                    return
                locks.release(self.users_fd)
            await asyncio.sleep(pause)

    async def _keep_redis(self) -> None:
        backoff = Backoff(0.1, 5.0)
        while True:
            began = time.monotonic()
            lock = await self._own_redis_lock()
            self._start_redis(lock)
            if self.redis is not None:
                await self._serve(self.redis)
            self.redis_ready.clear()
            pause = backoff.after(time.monotonic() - began)
            log.warning("Redis ended; starting it again in %.1f s", pause)
            await asyncio.sleep(pause)
            self._record(redis_pid=None, redis_restarts=self.state.redis_restarts + 1)

    async def _own_redis_lock(self) -> int:
        """Take redis.lock, shutting down a Redis that outlived its supervisor."""
        is_logged = False
        while (lock := locks.take_exclusive(self.paths.redis_lock)) is None:
            if not is_logged:
                log.warning("another Redis still uses this data directory; asking it to stop")
            is_logged = True
            await client.shut_down_orphan(read_address(self.paths), self.password)
            await asyncio.sleep(0.1)
        return lock

    def _start_redis(self, lock: int) -> None:
        """Start Redis, which inherits the lock. On failure `self.redis` is None."""
        self.redis = None
        try:
            binaries = find_redis()
            address = self._choose_address()
            with suppress(OSError):  # a full disk
                write_record(self.paths.address, address)
            config = render_config(self.paths, address, binaries, self.password)
            command = [binaries.server, config]
            self.redis = self.children.start(command, self.paths.redis_log, env=for_programs(), inherit=lock)
            self._record(
                redis_pid=self.redis.pid, redis_origin=binaries.origin, socket=address.socket, port=address.port
            )
        except (MemoryServiceError, OSError) as error:
            log.error("cannot start Redis: %s", error)
        finally:
            os.close(lock)

    async def _serve(self, redis: subprocess.Popen[bytes]) -> None:
        while await client.health(self._url) != "ready":
            if await self.children.exit_of(redis, 0.02) is not None:
                log.error("Redis did not start: %s", log_tail(self.paths.redis_log, 1))
                return
        self._record(redis_version=await client.version(self._url) or "unknown")
        self.redis_ready.set()
        await self.children.exit_of(redis)

    async def _keep_sidecar(self) -> None:
        argv = self.options.sidecar
        if not argv:
            await asyncio.Event().wait()
        backoff = Backoff(0.2, 15.0)
        while True:
            await self.redis_ready.wait()
            began = time.monotonic()
            code = await self._run_sidecar(argv)
            pause = CONFIG_RETRY_SECONDS if code == EX_CONFIG else backoff.after(time.monotonic() - began)
            log.warning("the sidecar ended with %s; starting it again in %.1f s", code, pause)
            await asyncio.sleep(pause)
            self._record(sidecar_restarts=self.state.sidecar_restarts + 1)

    async def _run_sidecar(self, argv: tuple[str, ...]) -> int | None:
        """Run the sidecar until it ends. A steady run clears the last error; a wrong configuration sets it."""
        written = self.paths.sidecar_log.stat().st_size if self.paths.sidecar_log.exists() else 0
        # Not in argv, which `ps` shows to all users. The pid is passed because the supervisor may be killed before the
        # sidecar can look up its parent.
        environment = for_sidecars() | {"REDIS_URL": self._url, PARENT_VARIABLE: str(os.getpid())}
        if self._transport_keys:
            environment[TRANSPORT_VARIABLE] = self._transport_keys
        try:
            self.sidecar = self.children.start(argv, self.paths.sidecar_log, env=environment)
        except OSError as error:
            self._record(sidecar_error=f"cannot start {argv[0]}: {error.strerror}")
            return EX_CONFIG
        self._record(sidecar_pid=self.sidecar.pid)
        code = await self.children.exit_of(self.sidecar, STEADY_SECONDS)
        if code is None:
            self._record(sidecar_error=None)
            code = await self.children.exit_of(self.sidecar)
        self._record(sidecar_pid=None)
        if code == EX_CONFIG:
            error = log_tail(self.paths.sidecar_log, 1, written)
            self._record(sidecar_error=error or "the sidecar is not configured correctly")
        return code

    async def _stop(self) -> None:
        """Stop the sidecar, then Redis. Deletes state.json first, so that no process attaches meanwhile."""
        self.paths.state.unlink(missing_ok=True)
        if self.sidecar is not None:
            await self.children.end(self.sidecar, patience=SIDECAR_PATIENCE, kill=True)
        if self.redis is not None and self.redis.poll() is None:
            await client.shut_down(self._url)
            if await self.children.exit_of(self.redis, 0.5) is None:
                # Never SIGKILL: Redis may still be writing to a slow disk.
                ended = await self.children.end(self.redis, patience=REDIS_PATIENCE, kill=False)
                log.log(logging.INFO if ended else logging.ERROR, "Redis ended: %s", ended)
        self._remove_socket()
        log.info("stopped")

    def _remove_socket(self) -> None:
        """Remove the socket of a Redis that was killed, but not of one that still runs."""
        if self.redis is not None and self.redis.poll() is not None:
            Path(self.state.socket).unlink(missing_ok=True)

    def _choose_address(self) -> Address:
        last = read_address(self.paths)
        return Address(str(choose_socket(self.paths, last)), choose_port(last))

    def _record(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self._write_state()

    def _write_state(self) -> None:
        """Write state.json. If the disk is full, Redis still answers reads, so it must keep running."""
        try:
            write_record(self.paths.state, self.state)
            self._is_recorded = True
        except OSError as error:
            if self._is_recorded:
                log.error("cannot write %s: %s; trying again", self.paths.state, error.strerror)
            self._is_recorded = False

    async def _keep_recorded(self) -> None:
        while True:
            await asyncio.sleep(RECORD_SECONDS)
            if not self._is_recorded:
                self._write_state()

    @property
    def _url(self) -> str:
        return client.socket_url(self.state.socket, self.password)


def main(argv: list[str] | None = None) -> int:
    """Supervise a data directory, unless another supervisor does. Returns the exit code."""
    restrict_umask()
    arguments = _parser().parse_args(argv)
    paths = prepare(arguments.data_dir)
    lock: int | None = arguments.lock_fd
    if lock is None:
        lock = locks.take_exclusive(paths.supervisor_lock)
    if lock is None:
        print(f"a supervisor of {paths.data_dir} is already running", file=sys.stderr)
        return 0
    os.set_inheritable(lock, False)
    if arguments.detach and os.fork():
        os._exit(0)  # the daemon is a child of init from here on, not of the server that started it
    os.chdir(paths.data_dir)
    paths.state.unlink(missing_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    options = Options(paths, arguments.model, arguments.grace, _sidecar(arguments))
    try:
        asyncio.run(_run(options))
    except MemoryServiceError as error:
        log.error("%s", error)
        return 1
    return 0


def _take_keys() -> str:
    """Remove the transport keys of the sidecar from the environment, and return them."""
    return os.environ.pop(TRANSPORT_VARIABLE, "")


async def _run(options: Options) -> None:
    await Supervisor(options).run()


def _sidecar(arguments: argparse.Namespace) -> tuple[str, ...]:
    if arguments.sidecar is None:
        return tuple(sidecar_command(arguments.model, arguments.device))
    return tuple(arguments.sidecar)


def _argv(text: str) -> list[str]:
    """Parse a sidecar's argv: a JSON list of strings, or null for no sidecar."""
    found: Any = json.loads(text)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(part, str) for part in found):
        raise argparse.ArgumentTypeError("must be a JSON list of strings, or null")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m memory_server.local.supervisor", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="auto", help="device of the sidecar")
    seconds: Callable[[str], float] = float
    parser.add_argument("--grace", type=seconds, default=10.0, help="seconds to run after the last user")
    parser.add_argument("--sidecar", type=_argv, default=None, help="argv as a JSON list; null for none")
    parser.add_argument("--lock-fd", type=int, default=None, help="a descriptor that holds supervisor.lock")
    parser.add_argument("--detach", action="store_true", help="go to the background at once")
    return parser


if __name__ == "__main__":
    sys.exit(main())
