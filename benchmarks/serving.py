"""Runs the product as its users do, as processes of its own, for as long as a measurement takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_BIN = Path(sys.executable).parent


@contextmanager
def product(*options: str) -> Generator[str]:
    """Serve over HTTP with an embedded Redis and a sidecar of its own; yields the MCP URL once it is ready."""
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    with tempfile.TemporaryDirectory(prefix="redis-memory-bench-") as folder:
        command = [str(_BIN / "redis-memory"), "serve", "--port", "0", "--data-dir", folder, *options]
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        try:
            yield _url(server)
        finally:
            server.terminate()
            server.wait(20)
            subprocess.run([str(_BIN / "redis-memory"), "stop", "--data-dir", folder], check=True, capture_output=True)


def _url(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    url = ""
    for line in server.stdout:
        if match := re.search(r"serves MCP at (\S+)", line):
            url = match.group(1)
        if line.startswith("Ready"):
            return url
    raise RuntimeError("the server ended before it was ready")
