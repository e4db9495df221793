"""The stack of a run as separate processes: Redis on a disk that can fill, its proxies, a sidecar and a server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
from support.embedder_fixtures import RedisServer
from support.ports import free_port
from support.redis_users import PASSWORDS, SERVER, SIDECAR

from chaos.progress import settle
from memory_core.crypto.keyring import Keyring, load_keyring, new_key
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store.connection import connect

from . import clock, power
from .proxy import Proxy

DISK_BYTES = 512 << 20
_ROOT = Path(__file__).parents[3]


class Process:
    """A program that can be killed, paused and restarted."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self._command, self._environment, self._log = command, environment, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env={**os.environ, **self._environment}, stdout=output, stderr=output
            )

    @property
    def is_alive(self) -> bool:
        """Whether it is still running."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Take it away without warning, be it paused or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Disk:
    """A small tmpfs that can be filled. Where mounting is not permitted, a plain folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(folder)]
        try:
            self.can_fill = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except OSError:
            self.can_fill = False
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Use all space."""
        with self._ballast.open("wb") as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
                file.flush()

    def free(self) -> None:
        """Free the space."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        if self.can_fill:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


class Machine:
    """All processes that serve, each of which may fail."""

    def __init__(self, folder: Path, fsync: str = "always") -> None:
        self.folder, self._fsync = folder, fsync
        self.log = folder / "processes.log"
        self.disk = Disk(folder / "disk")
        self.data = self.disk.folder / "redis"
        self.data.mkdir()
        self.sync_log = folder / "synced"
        self.clock_files = {name: folder / f"{name}.clock" for name in ("redis", "server")}
        for file in self.clock_files.values():
            clock.set_offset(file, 0)
        self.can_lose_power = power.compiler() is not None
        self.clocks_can_jump = clock.works()
        self.redis = RedisServer(folder, options=self._redis_options(), environment=self._redis_environment())
        key = new_key()
        self.keyring: Keyring = load_keyring(Settings.load(master_key=key))
        self.client: Client = connect(self.redis.url)
        self.proxies = {name: Proxy(self.redis.path) for name in ("server", "sidecar")}
        self.port = free_port()
        self._key = key

    @property
    def address(self) -> str:
        """The URL for agents."""
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Machine]:
        """Run all processes within the block."""
        await asyncio.to_thread(self.redis.start)
        try:
            async with self.proxies["server"], self.proxies["sidecar"]:
                self.sidecar, self.server = self._sidecar(), self._server()
                self.sidecar.start()
                self.server.start()
                try:
                    left = await settle(self.not_ready)
                    assert not left, left
                    yield self
                finally:
                    self.sidecar.kill()
                    self.server.kill()
        finally:
            await self.client.aclose()
            self.redis.kill()
            self.disk.close()

    async def not_ready(self) -> list[str]:
        """Why stores or searches do not work yet, in the server's words; nothing when they work."""
        try:
            async with httpx2.AsyncClient() as http:
                answer = await http.get(f"{self.address}/readyz", timeout=5)
        except httpx2.HTTPError as error:
            return [f"the server does not answer: {type(error).__name__}"]
        return [] if answer.status_code == 200 else [f"the server is not ready: {answer.text[:200]}"]

    def url(self, user: str, name: str) -> str:
        """The URL of Redis behind a proxy."""
        return f"redis://{user}:{PASSWORDS[user]}@127.0.0.1:{self.proxies[name].port}/0"

    def _redis_options(self) -> list[str]:
        rewrite = ("--auto-aof-rewrite-min-size", "4mb", "--aof-load-truncated", "yes")
        return ["--dir", str(self.data), "--appendfsync", self._fsync, "--loglevel", "warning", *rewrite]

    def _redis_environment(self) -> dict[str, str]:
        first: list[str] = []
        environment: dict[str, str] = {}
        if self.can_lose_power:
            first.append(str(power.build(self.folder)))
            environment["POWER_LOG"] = str(self.sync_log)
        if self.clocks_can_jump:
            first.append(str(clock.library()))
            environment |= clock.environment(self.clock_files["redis"])
        return environment | ({"LD_PRELOAD": " ".join(first)} if first else {})

    def _sidecar(self) -> Process:
        environment = _paths() | {
            "REDIS_URL": self.url(SIDECAR, "sidecar"),
            "MEMORY_TRANSPORT_KEY": self.keyring.transports[0].encoded,
        }
        command = [sys.executable, "-m", "memory_embedder", "--lease", "1", "--threads", "1", "--backend", "onnx"]
        return Process("sidecar", command, environment, self.log)

    def _server(self) -> Process:
        environment = _paths() | {
            "REDIS_URL": self.url(SERVER, "server"),
            "MEMORY_MASTER_KEY": self._key,
            "MEMORY_LIMITS__BURST": "1000000000",
            "MEMORY_LIMITS__CALLS_PER_SECOND": "1000000",
            "MEMORY_AUDIT__KEEP_ENTRIES": "0",
            "MEMORY_LOG_LEVEL": "ERROR",
        }
        if self.clocks_can_jump:
            environment |= clock.environment(self.clock_files["server"]) | {"LD_PRELOAD": str(clock.library())}
        command = [sys.executable, "-m", "memory_server", "serve", "--port", str(self.port)]
        return Process("server", command, environment, self.log)


def _paths() -> dict[str, str]:
    """Environment variables that make processes use the code of this checkout."""
    return {
        "PYTHONPATH": os.pathsep.join([str(_ROOT / "server"), str(_ROOT / "embedder")]),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def short_folder() -> Path:
    """Create a folder with a name short enough for socket paths."""
    return Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
