"""Runs `redis-memory` on any Redis, and reads and rewrites exports."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from memory_core.errors import MemoryServiceError
from memory_server.cli import app
from memory_server.cli.console import EXIT_CONFIG
from support.stack import MASTER_KEY, Agent


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    output: str

    @property
    def json(self) -> dict[str, Any]:
        """The output as JSON."""
        return json.loads(self.output)


@dataclass(frozen=True, slots=True)
class Shell:
    """A shell with the server's Redis and master key."""

    url: str
    key: str | None = MASTER_KEY

    async def run(self, *arguments: object) -> CommandResult:
        """Run `redis-memory` in a thread, because it starts its own event loop."""
        words = [str(word) for word in arguments]
        result = await asyncio.to_thread(CliRunner().invoke, app, words, env=self._environment)
        if isinstance(result.exception, MemoryServiceError):
            return CommandResult(EXIT_CONFIG, f"{result.exception.code}: {result.exception.message}")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return CommandResult(result.exit_code, result.stdout)

    async def done(self, *arguments: object) -> dict[str, Any]:
        """Run a command that must succeed and return its JSON."""
        result = await self.run(*arguments, "--json")
        assert result.code == 0, result.output
        return result.json

    async def start(self, *arguments: object) -> asyncio.subprocess.Process:
        """Start a command in its own process, which tests can kill."""
        environment = {**os.environ, **{name: value for name, value in self._environment.items() if value}}
        words = [str(word) for word in arguments]
        return await asyncio.create_subprocess_exec(sys.executable, "-m", "memory_server", *words, env=environment)

    @property
    def _environment(self) -> dict[str, str | None]:
        return {"REDIS_URL": self.url, "MEMORY_MASTER_KEY": self.key}


def lines_of(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a plain export."""
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def rewrite(file: Path, lines: list[dict[str, Any]]) -> Path:
    """Write the lines to a new file next to it."""
    other = file.with_name(f"other-{file.name}")
    other.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return other


async def imported(shell: Shell, path: Path, namespace: str, *options: str) -> dict[str, Any]:
    """Import a file for ann."""
    return await shell.done("import", path, "--agent", "ann", "--namespace", namespace, *options)


async def found(agent: Agent, words: str) -> list[dict[str, Any]]:
    """Search by keywords only."""
    hits = (await agent.call("semantic_search", query=words, mode="keyword"))["hits"]
    return [hit["memory"] for hit in hits]
