"""How long a client waits: stdio `initialize` compared with a bare server of the same SDK, and HTTP until ready."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks import results

_BIN = Path(sys.executable).parent
_ROUNDS = 9
_BARE = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("bare")
@server.tool()
def add(a: int, b: int) -> int:
    return a + b
server.run("stdio")
"""
_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "bench", "version": "1"},
    },
}


def seconds_to_initialize(command: list[str]) -> float:
    """Start a stdio server and time its answer to `initialize`."""
    started = time.perf_counter()
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(_INITIALIZE).encode() + b"\n")
    server.stdin.flush()
    assert b'"result"' in server.stdout.readline()
    taken = time.perf_counter() - started
    server.communicate()
    return taken


def seconds_until_ready(data_dir: str) -> float:
    """Start the HTTP server; time the line that says that memories can be stored and searched."""
    started = time.perf_counter()
    command = [str(_BIN / "redis-memory"), "serve", "--port", "0", "--data-dir", data_dir]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    ready = next(line for line in server.stdout if line.startswith("Ready"))
    taken = time.perf_counter() - started
    assert ready
    server.terminate()
    server.communicate()
    stop(data_dir)
    return taken


def stop(data_dir: str) -> None:
    """Stop the embedded Redis and sidecar."""
    subprocess.run([str(_BIN / "redis-memory"), "stop", "--data-dir", data_dir], check=True, capture_output=True)


def main() -> None:
    """Measure in turn, so that disturbances affect both."""
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="redis-memory-bench-") as folder:
        first = seconds_until_ready(folder)
        second = [seconds_until_ready(folder) for _ in range(3)]
        console.print(f"HTTP ready: first start {first:.2f} s, later starts {statistics.median(second):.2f} s")
        serve = [str(_BIN / "redis-memory"), "serve", "--stdio", "--data-dir", folder]
        bare = [sys.executable, "-c", _BARE]
        pairs = [(seconds_to_initialize(bare), seconds_to_initialize(serve)) for _ in range(_ROUNDS)]
        stop(folder)
    ratios = [ours / theirs for theirs, ours in pairs]
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    results.save(
        "startup", {"first": first, "later": second, "stdio_ratios": ratios, "bare": medians[0], "ours": medians[1]}
    )
    console.print(
        f"stdio initialize: bare SDK {medians[0]:.2f} s, ours {medians[1]:.2f} s, "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) over {_ROUNDS} pairs"
    )


if __name__ == "__main__":
    main()
