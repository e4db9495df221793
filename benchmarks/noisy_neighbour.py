"""How much one hostile agent, or one hostile address, slows another agent's calls: one flood after the other.

`python -m benchmarks.noisy_neighbour [FLOOD …] [--seconds N]` measures the victim's mix of calls quiet, then under a
flood, for each flood. The flood runs in a process of its own with a low priority (nice 10), because it shares the
cores with the server, and comes from 127.0.0.2. Aim: a p99 at most three times the quiet one, and no refused call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from benchmarks import results
from benchmarks.metrics import percentile
from benchmarks.raw_client import RawClient, Refused
from benchmarks.serving import Product, product
from memory_core.settings.settings import Settings

SECONDS, WARM_SECONDS, SETTLE_SECONDS = 8.0, 2.0, 2.0
PRIORITY = 10
HOSTILE_ADDRESS = "127.0.0.2"
NAMESPACE, VICTIM, HOSTILE = "shared", "victim", "mallory"
VERSION = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
_numbers = count()


@dataclass(slots=True)
class Attacker:
    """Sends raw requests from the hostile address, and counts the answers."""

    url: str
    answers: dict[str, int] = field(default_factory=dict[str, int])

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.url)
        return await asyncio.open_connection(parts.hostname, parts.port, local_addr=(HOSTILE_ADDRESS, 0))

    def head(self, method: str, path: str, length: int, *headers: str) -> bytes:
        host = urlsplit(self.url).netloc
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *headers]
        lines += ["Accept: application/json, text/event-stream", f"Content-Length: {length}", "", ""]
        return "\r\n".join(lines).encode()

    async def send(self, method: str, path: str, body: bytes = b"", *headers: str) -> None:
        """Send one request on a connection of its own, and wait for the end of the answer."""
        reader, writer = await self.open()
        try:
            writer.write(self.head(method, path, len(body), "Connection: close", *headers) + body)
            answer = await reader.read()
            refused = b'"overloaded"' in answer or b'"quota_exceeded"' in answer or b'"conflict"' in answer
            status = answer[9:12].decode() or "closed"
            name = f"{status} refused" if refused else status
            self.answers[name] = self.answers.get(name, 0) + 1
        finally:
            writer.close()

    async def call(self, tool: str, **arguments: Any) -> None:
        """Call a tool as the hostile agent."""
        params = {"name": tool, "arguments": arguments, "_meta": META}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        await self.post(body, f"Mcp-Protocol-Version: {VERSION}", "Mcp-Method: tools/call", f"Mcp-Name: {tool}")

    async def post(self, body: bytes, *headers: str) -> None:
        await self.send("POST", f"/mcp?agent={HOSTILE}&namespace={NAMESPACE}", body, *headers)

    async def at_once(self, number: int, send: Callable[[], Awaitable[None]]) -> None:
        """Repeat a request without pause on so many connections."""

        async def repeat() -> None:
            while True:
                with suppress(OSError):
                    await send()

        await asyncio.gather(*(repeat() for _ in range(number)))


async def half_sent_bodies(attacker: Attacker) -> None:
    """Logins and calls whose bodies never end."""

    async def begin(path: str) -> None:
        while True:
            with suppress(OSError):
                reader, writer = await attacker.open()
                writer.write(attacker.head("POST", path, 4 << 20) + b"{")
                await reader.read()
                writer.close()

    paths = ["/api/login", f"/mcp?agent={HOSTILE}"] * 64
    await asyncio.gather(*map(begin, paths))


async def header_streams(attacker: Attacker) -> None:
    """Requests whose headers never end."""

    async def stream() -> None:
        while True:
            with suppress(OSError):
                _, writer = await attacker.open()
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
                for number in count():
                    writer.write(f"x-{number}: {'a' * 1000}\r\n".encode())
                    await writer.drain()
                    await asyncio.sleep(0.01)

    await asyncio.gather(*(stream() for _ in range(32)))


async def labels(attacker: Attacker) -> None:
    """Labels that are slow to normalise."""
    label = "a" + "\u0301\u0323" * 22_000
    await attacker.at_once(4, lambda: attacker.call("store_memory", content="x", tags=[label]))


async def newlines(attacker: Attacker) -> None:
    """Contents that are slow to split."""
    await attacker.at_once(16, lambda: attacker.call("store_memory", content="a" + "\n" * ((1 << 20) - 1), wait=False))


async def big_json(attacker: Attacker) -> None:
    """Bodies of 4 MiB with two million values."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"a":['
    body += b"1," * 2_000_000 + b"1]}}}"
    await attacker.at_once(4, lambda: attacker.post(body, f"Mcp-Protocol-Version: {VERSION}"))


async def sessions(attacker: Attacker) -> None:
    """Sessions that are opened and left open."""
    information = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": information}).encode()
    await attacker.at_once(64, lambda: attacker.post(body))


async def confirmations(attacker: Attacker) -> None:
    """Questions to the client that it never answers."""

    async def ask() -> None:
        url = f"{attacker.url}?agent={HOSTILE}&namespace={NAMESPACE}"
        with suppress(Refused, RuntimeError, EOFError):
            async with RawClient(url, capabilities={"elicitation": {}}) as client:
                await client.call("clear_memory", agent_id=HOSTILE)
        await asyncio.sleep(0.1)

    for text in ("one", "two"):
        await attacker.call("store_memory", content=text, wait=False)
    await attacker.at_once(64, ask)


async def readyz(attacker: Attacker) -> None:
    """Probes without end."""
    await attacker.at_once(200, lambda: attacker.send("GET", "/readyz"))


async def calls(attacker: Attacker) -> None:
    """Cheap calls without end."""
    await attacker.at_once(200, lambda: attacker.call("memory_stats"))


async def task_kinds(attacker: Attacker) -> None:
    """Tasks that all demand something else."""
    for begin in range(0, 1500, 100):
        tasks = [
            {"op": "distribute_task", "description": "x", "min_context_window": 1_000_000 + begin + number}
            for number in range(100)
        ]
        await attacker.call("batch_operations", operations=tasks)
    await asyncio.sleep(3600)


async def grants(attacker: Attacker) -> None:
    """Grants to the victim, which did not ask for them."""
    for begin in range(0, 256, 64):
        given = [
            {
                "op": "share_context_with_agent",
                "target_agent": VICTIM,
                "tags": [f"{begin + number}-{tag}" for tag in range(16)],
            }
            for number in range(64)
        ]
        await attacker.call("batch_operations", operations=given)
    await asyncio.sleep(3600)


async def private_events(attacker: Attacker) -> None:
    """Private memories, each with its events."""

    async def store() -> None:
        contents = [f"Number {next(_numbers)}." for _ in range(100)]
        stores = [{"op": "store_memory", "content": text, "wait": False} for text in contents]
        await attacker.call("batch_operations", operations=stores)

    await attacker.at_once(2, store)


async def waits(attacker: Attacker) -> None:
    """Waits for events that the hostile agent's own public memories end."""

    async def publish() -> None:
        await attacker.call("store_memory", content=f"News {next(_numbers)}.", visibility="public", wait=False)
        await asyncio.sleep(0.1)

    waiting = attacker.at_once(300, lambda: attacker.call("wait_for_events", timeout_seconds=60))
    await asyncio.gather(waiting, attacker.at_once(1, publish))


FLOODS: dict[str, Callable[[Attacker], Awaitable[None]]] = {
    flood.__name__: flood
    for flood in (
        half_sent_bodies,
        header_streams,
        labels,
        newlines,
        big_json,
        sessions,
        confirmations,
        readyz,
        calls,
        task_kinds,
        grants,
        private_events,
        waits,
    )
}


@dataclass(slots=True)
class Times:
    """Milliseconds of the victim's calls, and how many were refused or failed."""

    milliseconds: list[float] = field(default_factory=list[float])
    refused: int = 0


async def _victim(url: str, seconds: float) -> Times:
    """Measure a mix of calls, one after the other. A refused connection is tried again."""
    times, ends = Times(), time.perf_counter() + seconds
    while time.perf_counter() < ends:
        try:
            async with RawClient(f"{url}?agent={VICTIM}&namespace={NAMESPACE}") as client:
                await _calls(client, times, ends)
        except (RuntimeError, OSError, asyncio.IncompleteReadError):
            times.refused += 1
            await asyncio.sleep(0.2)
    return times


async def _calls(client: RawClient, times: Times, ends: float) -> None:
    with suppress(Refused):
        await client.call("register_agent", context_window=8000)
    while time.perf_counter() < ends:
        number = next(_numbers)
        for tool, arguments in (
            ("store_memory", {"content": f"The ferry to island {number} leaves at noon.", "wait": False}),
            ("semantic_search", {"query": f"when does ferry {number} leave?", "mode": "keyword", "limit": 5}),
            ("get_agent_memories", {"limit": 5}),
            ("update_agent_heartbeat", {}),
            ("wait_for_events", {"timeout_seconds": 0}),
            ("get_pending_tasks", {}),
        ):
            began = time.perf_counter()
            try:
                await client.call(tool, **arguments)
            except Refused:
                times.refused += 1
            times.milliseconds.append((time.perf_counter() - began) * 1000)


async def measure(running: Product, name: str, seconds: float) -> dict[str, Any]:
    """Measure the victim quiet, and then under one flood."""
    url = running.url.partition("?")[0]
    quiet = await _victim(url, seconds)
    command = [sys.executable, "-m", "benchmarks.noisy_neighbour", "--flood", name, "--url", url]
    flood = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        await asyncio.sleep(WARM_SECONDS)
        began, used = time.perf_counter(), running.cpu_seconds(flood.pid)
        under = await _victim(url, seconds)
        assert flood.returncode is None, f"the flood {name} ended early"
        lasted, used_then = time.perf_counter() - began, running.cpu_seconds(flood.pid)
    finally:
        with suppress(ProcessLookupError):
            flood.kill()
        printed, _ = await flood.communicate()
    await asyncio.sleep(SETTLE_SECONDS)
    before, during = [
        [percentile(times.milliseconds, share) for share in (0.5, 0.99)] if times.milliseconds else [None, None]
        for times in (quiet, under)
    ]
    return {
        "flood": name,
        "quiet p50 ms": before[0],
        "quiet p99 ms": before[1],
        "p50 ms": during[0],
        "p99 ms": during[1],
        "p99 to quiet": during[1] / before[1] if during[1] and before[1] else None,
        "calls": len(under.milliseconds),
        "refused": under.refused,
        **{f"{who} CPU": (used_then[who] - used[who]) / lasted for who in used},
        "the flood's answers": (printed.decode().splitlines() or [""])[-1],
    }


async def _flood(name: str, url: str) -> None:
    """Flood until killed, and print the answers so far every half second."""
    os.nice(PRIORITY)
    attacker = Attacker(url)
    flooding = asyncio.ensure_future(FLOODS[name](attacker))
    while not flooding.done():
        await asyncio.wait([flooding], timeout=0.5)
        print(", ".join(f"{number} x {answer}" for answer, number in sorted(attacker.answers.items())), flush=True)
    flooding.result()


async def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("floods", nargs="*", metavar="FLOOD", help=f"of {', '.join(FLOODS)}; all if there is none")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--flood", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood:
        await _flood(options.flood, options.url)
        return
    os.environ["MEMORY_LIMITS__BURST"] = str(Settings.load().limits.burst)
    rows: list[dict[str, Any]] = []
    for name in options.floods or FLOODS:
        with product() as running:  # a flood leaves memories, tasks and sessions behind
            rows.append(await measure(running, name, options.seconds))
            print(json.dumps(rows[-1]), flush=True)
    results.save("noisy_neighbour", {"flood_priority": PRIORITY, "seconds": options.seconds, "floods": rows})
    results.show("One hostile agent, and another agent's calls", rows)


if __name__ == "__main__":
    asyncio.run(main())
