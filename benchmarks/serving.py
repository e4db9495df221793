"""Runs the product as its users do, as processes of its own, for as long as a measurement takes."""

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

from memory_core.connection import Client, connect
from memory_core.settings import Settings
from memory_server.local.client import socket_url
from memory_server.local.paths import locate, password_of, read_state
from memory_server.service import Service

_BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Product:
    """A running product: where it serves MCP, and where its data lie."""

    url: str
    data_dir: Path
    pid: int

    @property
    def redis_url(self) -> str:
        """Where its embedded Redis is."""
        paths = locate(self.data_dir)
        state = read_state(paths)
        assert state is not None
        return socket_url(state.socket, password_of(paths))

    def redis(self) -> Client:
        """Make a client of its embedded Redis, to look behind the curtain."""
        return connect(self.redis_url)


@contextmanager
def product(*options: str) -> Generator[Product]:
    """Serve over HTTP with an embedded Redis and a sidecar of its own; yields once it is ready."""
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    environment["MEMORY_LIMITS__BURST"] = "1000000000"  # one agent does here what many would
    with tempfile.TemporaryDirectory(prefix="redis-memory-bench-") as folder:
        command = [str(_BIN / "redis-memory"), "serve", "--port", "0", "--data-dir", folder, *options]
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        try:
            yield Product(_url(server), Path(folder), server.pid)
        finally:
            server.terminate()
            server.wait(20)
            subprocess.run([str(_BIN / "redis-memory"), "stop", "--data-dir", folder], check=True, capture_output=True)


@asynccontextmanager
async def service_on(running: Product) -> AsyncGenerator[Service]:
    """Run the service of the HTTP server within this process, on the same Redis."""
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
