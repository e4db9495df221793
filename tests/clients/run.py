"""Runs third-party MCP clients against the server as users start it, over HTTP and stdio.

Two agents run one scenario (scenario.py) with each client, in each protocol version it speaks. All tool schemas and
answers are checked strictly. `make test-clients` installs the clients from requirements.txt and package-lock.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from importlib.metadata import distributions
from itertools import count
from pathlib import Path
from typing import IO, Any

from peers import HERE, Inspector, PeerFailed, connected
from scenario import FACT, AgentClient, ScenarioFailed, expect, full_scenario, short_scenario
from support.node import NODE, install
from support.ports import free_port
from support.product import SERVE, serving, shown_on_failure, stop_redis

RUN_SECONDS, AT_ONCE = 120.0, 3
FASTMCP, CHUK, SDK = "with_fastmcp.py", "with_chuk.py", "with_sdk.mjs"


@dataclass(frozen=True, slots=True)
class Run:
    """One client over one transport in one protocol era."""

    client: str
    stdio: bool
    era: str
    """The client's name for it."""
    version: str
    """The version that must be negotiated; empty if the client does not report it."""

    @property
    def stays_connected(self) -> bool:
        """Whether the client keeps one HTTP connection for all calls."""
        return not self.stdio and self.client != "inspector"


RUNS = [
    Run("inspector", False, "legacy", ""),
    Run("inspector", False, "modern", ""),
    Run("inspector", True, "legacy", ""),
    Run("inspector", True, "modern", ""),
    Run(SDK, False, "", "2025-11-25"),
    Run(SDK, True, "", "2025-11-25"),
    Run(FASTMCP, False, "auto", "2026-07-28"),
    Run(FASTMCP, True, "legacy", "2025-11-25"),
    Run(CHUK, False, "2025-03-26", "2025-03-26"),
    Run(CHUK, False, "2025-06-18", "2025-06-18"),
    Run(CHUK, True, "2024-11-05", "2024-11-05"),
]


@dataclass(slots=True)
class Environment:
    """What the runs use: a server, the data folder of stdio servers, the clients' environment."""

    url: str
    data: Path
    python: str
    home: Path

    def target_of(self, agent: str, namespace: str, stdio: bool) -> tuple[str, list[str]]:
        """The URL or the command by which an agent connects."""
        if not stdio:
            return f"{self.url}?agent={agent}&namespace={namespace}", []
        named = ["--agent", agent, "--namespace", namespace, "--data-dir", str(self.data)]
        return "", [*SERVE, "--stdio", *named]

    async def execute(self, run: Run, namespace: str) -> int:
        """Run the scenario; return the number of calls.

        Raises:
            ScenarioFailed: the server's answer was wrong.
            PeerFailed: the client failed.
        """
        names = ("planner", "coder")
        if run.client == "inspector":
            peers = [Inspector(*self.target_of(name, namespace, run.stdio), run.era, self.home) for name in names]
            agents = [AgentClient(name, peer) for name, peer in zip(names, peers, strict=True)]
            short = run.stdio or run.era == "legacy"
            await (short_scenario(agents[0]) if short else full_scenario(*agents))
            return sum(agent.calls for agent in agents)
        program = [str(NODE) if run.client == SDK else self.python, str(HERE / run.client)]
        async with AsyncExitStack() as opened:
            agents: list[AgentClient] = []
            for name in names:
                where = self.target_of(name, namespace, run.stdio)
                peer = await opened.enter_async_context(connected(program, *where, run.era))
                version = await peer.ask("version")
                expect(version == run.version, f"{run.version} is negotiated", version)
                agents.append(AgentClient(name, peer))
            await full_scenario(*agents)
            return sum(agent.calls for agent in agents)


def main() -> int:
    """Run all and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="the Python of the environment with the clients from PyPI")
    parser.add_argument("--only", default="", help="runs whose name contains this")
    options = parser.parse_args()
    install(HERE)
    started = time.monotonic()
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="clients-")))
        parts.callback(stop_redis, folder / "data")
        log = parts.enter_context((folder / "server.log").open("w+b"))
        parts.enter_context(shown_on_failure(log))
        url = parts.enter_context(serving(SERVE, folder / "data", log))
        environment = Environment(url, folder / "data", options.python, folder / "home")
        environment.home.mkdir()
        versions = _versions(Path(options.python))
        lines, failed = asyncio.run(_run(environment, versions, options.only))
        for run in filter(lambda run: run.stays_connected, RUNS):
            name = f"{versions[run.client]} HTTP {run.version}, the server restarts"
            if options.only in name:
                lines.append(asyncio.run(_restart(environment, run, name, log)))
                failed += lines[-1].startswith("FAIL")
    print("\n".join(lines))
    print(f"{len(lines) - failed} of {len(lines)} runs passed, {time.monotonic() - started:.0f} s")
    return int(bool(failed))


async def _restart(environment: Environment, run: Run, name: str, log: IO[bytes]) -> str:
    """Restart the server under a connected client, which must go on without connecting again."""
    port, began = free_port(), time.monotonic()
    url = f"http://127.0.0.1:{port}/mcp?agent=planner&namespace=restart-{port}"
    program = [str(NODE) if run.client == SDK else environment.python, str(HERE / run.client)]
    try:
        async with asyncio.timeout(RUN_SECONDS), AsyncExitStack() as opened:
            with serving(SERVE, environment.data, log, port):
                agent = AgentClient("planner", await opened.enter_async_context(connected(program, url, [], run.era)))
                await agent.check_tools()
                stored = await agent.call("store_memory", content=FACT)
            with serving(SERVE, environment.data, log, port):
                read = await _again(agent, "retrieve_memory", memory_id=stored["memory_id"])
                expect(read["memory"]["content"] == FACT, "the session continues after a restart", read)
                await agent.call("memory_stats")
                await opened.aclose()
    except Exception as error:
        return "\n".join([f"FAIL {name}: {type(error).__name__}: {error}", *_notes(error)])
    return f"ok   {name}: {agent.calls} calls, {time.monotonic() - began:.1f} s"


async def _again(agent: AgentClient, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """Call a tool, and once more if the client notices only now that its connection is closed."""
    try:
        return await agent.call(tool, **arguments)
    except PeerFailed:
        return await agent.call(tool, **arguments)


async def _run(environment: Environment, versions: dict[str, str], only: str) -> tuple[list[str], int]:
    """Run a few clients at once; return a line for each and the number of failures."""
    turn, numbers, failures = asyncio.Semaphore(AT_ONCE), count(), 0

    async def run_one(run: Run) -> str | None:
        nonlocal failures
        name = " ".join([versions[run.client], "stdio" if run.stdio else "HTTP", run.version or run.era])
        if only not in name:
            return None
        async with turn:
            began = time.monotonic()
            try:
                async with asyncio.timeout(RUN_SECONDS):
                    calls = await environment.execute(run, f"scenario-{next(numbers)}")
            except Exception as error:
                failures += 1
                return "\n".join([f"FAIL {name}: {type(error).__name__}: {error}", *_notes(error)])
            return f"ok   {name}: {calls} calls, {time.monotonic() - began:.1f} s"

    lines = await asyncio.gather(*map(run_one, RUNS))
    return [line for line in lines if line], failures


def _notes(error: Exception) -> list[str]:
    """What the client printed, unless the server's answer was at fault."""
    if isinstance(error, ScenarioFailed):
        return []
    return [f"     | {line}" for note in getattr(error, "__notes__", ()) for line in note.splitlines() if line.strip()]


def _versions(python: Path) -> dict[str, str]:
    """The client's names with their installed versions."""
    (site,) = (python.parent.parent / "lib").glob("python3*/site-packages")
    pypi = {found.name: found.version for found in distributions(path=[str(site)])}

    def npm(name: str) -> str:
        manifest = HERE / "node_modules/@modelcontextprotocol" / name / "package.json"
        return f"@modelcontextprotocol/{name} {json.loads(manifest.read_text())['version']}"

    return {
        "inspector": npm("inspector"),
        SDK: npm("sdk"),
        FASTMCP: f"fastmcp-slim {pypi['fastmcp-slim']}",
        CHUK: f"chuk-mcp {pypi['chuk-mcp']}",
    }


if __name__ == "__main__":
    sys.exit(main())
