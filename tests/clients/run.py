"""Runs MCP clients that were not written here against the server as its users start it, over HTTP and stdio.

Each is taken through one tour (tour.py) by two agents, in the protocol versions that it speaks; tools' schemas and all
answers are checked strictly. `make test-clients` installs them by requirements.txt and package-lock.json.
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

from peers import HERE, Inspector, connected
from support.node import NODE, install
from support.product import SERVE, serving, shown_on_failure, stop_redis
from tour import Broken, Traveller, expect, short_tour, whole_tour

LEG_SECONDS, AT_ONCE = 120.0, 3
FASTMCP, CHUK, SDK = "with_fastmcp.py", "with_chuk.py", "with_sdk.mjs"


@dataclass(frozen=True, slots=True)
class Leg:
    """One client over one transport in one era of the protocol."""

    client: str
    stdio: bool
    era: str
    """As the client names it."""
    version: str
    """That must be agreed on; nothing where the client does not tell."""


LEGS = [
    Leg("inspector", False, "legacy", ""),
    Leg("inspector", False, "modern", ""),
    Leg("inspector", True, "legacy", ""),
    Leg("inspector", True, "modern", ""),
    Leg(SDK, False, "", "2025-11-25"),
    Leg(SDK, True, "", "2025-11-25"),
    Leg(FASTMCP, False, "auto", "2026-07-28"),
    Leg(FASTMCP, True, "legacy", "2025-11-25"),
    Leg(CHUK, False, "2025-03-26", "2025-03-26"),
    Leg(CHUK, False, "2025-06-18", "2025-06-18"),
    Leg(CHUK, True, "2024-11-05", "2024-11-05"),
]


@dataclass(slots=True)
class Ground:
    """Where the legs run: a server, its data for servers on stdio, the clients' environment."""

    url: str
    data: Path
    python: str
    home: Path

    def at(self, agent: str, namespace: str, stdio: bool) -> tuple[str, list[str]]:
        """Give the URL or the command by which an agent connects."""
        if not stdio:
            return f"{self.url}?agent={agent}&namespace={namespace}", []
        named = ["--agent", agent, "--namespace", namespace, "--data-dir", str(self.data)]
        return "", [*SERVE, "--stdio", *named]

    async def go(self, leg: Leg, namespace: str) -> int:
        """Take the tour; give the number of calls.

        Raises:
            Broken: it went wrong. PeerFailed: the client did.
        """
        names = ("planner", "coder")
        if leg.client == "inspector":
            peers = [Inspector(*self.at(name, namespace, leg.stdio), leg.era, self.home) for name in names]
            travellers = [Traveller(name, peer) for name, peer in zip(names, peers, strict=True)]
            short = leg.stdio or leg.era == "legacy"
            await (short_tour(travellers[0]) if short else whole_tour(*travellers))
            return sum(traveller.calls for traveller in travellers)
        program = [str(NODE) if leg.client == SDK else self.python, str(HERE / leg.client)]
        async with AsyncExitStack() as opened:
            travellers: list[Traveller] = []
            for name in names:
                where = self.at(name, namespace, leg.stdio)
                peer = await opened.enter_async_context(connected(program, *where, leg.era))
                version = await peer.ask("version")
                expect(version == leg.version, f"{leg.version} is agreed on", version)
                travellers.append(Traveller(name, peer))
            await whole_tour(*travellers)
            return sum(traveller.calls for traveller in travellers)


def main() -> int:
    """Run all and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="of the environment in which the clients from PyPI are")
    parser.add_argument("--only", default="", help="legs whose name has this")
    options = parser.parse_args()
    install(HERE)
    started = time.monotonic()
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="clients-")))
        parts.callback(stop_redis, folder / "data")
        log = parts.enter_context((folder / "server.log").open("w+b"))
        parts.enter_context(shown_on_failure(log))
        url = parts.enter_context(serving(SERVE, folder / "data", log))
        ground = Ground(url, folder / "data", options.python, folder / "home")
        ground.home.mkdir()
        lines, failed = asyncio.run(_run(ground, _versions(Path(options.python)), options.only))
    print("\n".join(lines))
    print(f"{len(lines) - failed} of {len(lines)} legs passed, {time.monotonic() - started:.0f} s")
    return int(bool(failed))


async def _run(ground: Ground, versions: dict[str, str], only: str) -> tuple[list[str], int]:
    """Run a few legs at once; give a line for each and how many failed."""
    turn, numbers, failures = asyncio.Semaphore(AT_ONCE), count(), 0

    async def one(leg: Leg) -> str | None:
        nonlocal failures
        name = " ".join([versions[leg.client], "stdio" if leg.stdio else "HTTP", leg.version or leg.era])
        if only not in name:
            return None
        async with turn:
            began = time.monotonic()
            try:
                async with asyncio.timeout(LEG_SECONDS):
                    calls = await ground.go(leg, f"tour-{next(numbers)}")
            except Exception as error:
                failures += 1
                return "\n".join([f"FAIL {name}: {type(error).__name__}: {error}", *_notes(error)])
            return f"ok   {name}: {calls} calls, {time.monotonic() - began:.1f} s"

    said = await asyncio.gather(*map(one, LEGS))
    return [line for line in said if line], failures


def _notes(error: Exception) -> list[str]:
    """Give what the client printed, where the fault is not the server's answer."""
    if isinstance(error, Broken):
        return []
    return [f"     | {line}" for note in getattr(error, "__notes__", ()) for line in note.splitlines() if line.strip()]


def _versions(python: Path) -> dict[str, str]:
    """Give the names of the clients with their versions as installed."""
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
