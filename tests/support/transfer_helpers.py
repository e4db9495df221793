"""What the tests of moving data share: the shell on some Redis, and what came of a command."""

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
from support.stack import MASTER_KEY


@dataclass(frozen=True, slots=True)
class Told:
    """How a command ended, and what it said."""

    code: int
    said: str

    @property
    def json(self) -> dict[str, Any]:
        """Its answer in JSON."""
        return json.loads(self.said)


@dataclass(frozen=True, slots=True)
class Shell:
    """A shell with the server's Redis and master key."""

    url: str
    key: str | None = MASTER_KEY

    async def run(self, *arguments: object) -> Told:
        """Run `redis-memory`, in a thread since it brings an event loop of its own."""
        words = [str(word) for word in arguments]
        result = await asyncio.to_thread(CliRunner().invoke, app, words, env=self._environment)
        if isinstance(result.exception, MemoryServiceError):
            return Told(EXIT_CONFIG, f"{result.exception.code}: {result.exception.message}")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Told(result.exit_code, result.stdout)

    async def done(self, *arguments: object) -> dict[str, Any]:
        """Run it, which must go well, and give its answer in JSON."""
        told = await self.run(*arguments, "--json")
        assert told.code == 0, told.said
        return told.json

    async def start(self, *arguments: object) -> asyncio.subprocess.Process:
        """Run it in a process of its own, which may be killed."""
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
    """Write other lines to a file beside it."""
    other = file.with_name(f"other-{file.name}")
    other.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return other
