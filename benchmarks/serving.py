"""Runs the product as users do, in separate processes, for the time of a measurement."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store.connection import connect
from memory_server.local.client import socket_url
from memory_server.local.paths import State, locate, password_of, read_state
from memory_server.service import Service

_BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Product:
    """A running product: its MCP address, its data folder and its server process."""

    url: str
    data_dir: Path
    server: subprocess.Popen[str]

    @property
    def redis_url(self) -> str:
        """The URL of its embedded Redis."""
        return socket_url(self.state().socket, password_of(locate(self.data_dir)))

    def state(self) -> State:
        """The running processes."""
        state = read_state(locate(self.data_dir))
        assert state is not None
        return state

    def resident(self) -> dict[str, float]:
        """Resident memory of each process, in MiB."""
        state = self.state()
        pids = {"server": self.server.pid, "sidecar": state.sidecar_pid, "redis": state.redis_pid}
        return {name: _resident(pid) for name, pid in pids.items() if pid}

    def cpu_seconds(self, *others: int) -> dict[str, float]:
        """CPU time of each process so far, and of other processes together."""
        state = self.state()
        pids = {"server": [self.server.pid], "Redis": [state.redis_pid], "sidecar": [state.sidecar_pid]}
        return {name: sum(_cpu(pid) for pid in some if pid) for name, some in (pids | {"flood": [*others]}).items()}

    def redis(self) -> Client:
        """A client of its embedded Redis."""
        return connect(self.redis_url)


@contextmanager
def product(*options: str) -> Generator[Product]:
    """Serve over HTTP with an embedded Redis and a sidecar; yields once ready."""
    with tempfile.TemporaryDirectory(prefix="redis-memory-bench-") as folder:
        server, url = serve(Path(folder), *options)
        try:
            yield Product(url, Path(folder), server)
        finally:
            server.terminate()
            server.wait(20)
            subprocess.run([str(_BIN / "redis-memory"), "stop", "--data-dir", folder], check=True, capture_output=True)


def serve(folder: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server on a data folder; return it and its address once ready."""
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    environment.setdefault("MEMORY_LIMITS__BURST", "1000000000")  # one agent makes the calls of many
    command = [str(_BIN / "redis-memory"), "serve", "--port", "0", "--data-dir", str(folder), *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    return server, _url(server)


@asynccontextmanager
async def service_on(running: Product) -> AsyncGenerator[Service]:
    """Run the service of the HTTP server in this process, on the same Redis."""
    async with Service(Settings.load(redis_url=running.redis_url, embed_wait_seconds=30.0)).running() as service:
        await service.backend.client()
        yield service


def _url(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    url = ""
    for line in server.stdout:
        if match := re.search(r"serves MCP at (\S+)", line):
            url = match.group(1)
        if line.startswith("Ready"):
            return url
    raise RuntimeError("the server ended before it was ready")


def _resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
