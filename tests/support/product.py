"""Starts the product as its users do, `redis-memory serve` with an embedded Redis, for tests from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from support.ports import free_port

SERVE = (sys.executable, "-m", "memory_server", "serve")
READY_SECONDS, STOP_SECONDS = 90.0, 20.0


@contextmanager
def serving(command: Sequence[str], data: Path, log: IO[bytes], port: int | None = None) -> Generator[str]:
    """Run a server, by default on a free port; yields its URL once it is ready and stops it afterwards."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MEMORY_", "REDIS_"))}
    process = subprocess.Popen(
        [*command, "--port", str(port), "--data-dir", str(data)], env=environment, stdout=log, stderr=log
    )
    try:
        _wait_ready(url, process)
        yield f"{url}/mcp"
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def shown_on_failure(log: IO[bytes]) -> Generator[None]:
    """Print the servers' log if the block fails."""
    try:
        yield
    except BaseException:
        log.seek(0)
        print(log.read().decode(errors="replace"), file=sys.stderr)
        raise


def stop_redis(data: Path) -> None:
    """Stop the embedded Redis and sidecar of a data folder."""
    subprocess.run(
        [sys.executable, "-m", "memory_server", "stop", "--data-dir", str(data)],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=3 * STOP_SECONDS,
    )


def _wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit(f"the server was not ready within {READY_SECONDS:.0f} s")
