"""Runs redis-memory commands as from a shell."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from typer.testing import CliRunner, Result

from memory_core.crypto.signed_entry import SignedEntry
from memory_core.records.keys import Keys
from memory_server import cli
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Stack


class Shell:
    """A shell in which commands run on one namespace."""

    def __init__(self, stack: Stack, namespace: str) -> None:
        self.stack = stack
        self.namespace = namespace

    async def run(self, *words: str, scoped: bool = True, **environment: str) -> Result:
        """Run a command in a thread, because it starts its own event loop."""
        known = {"REDIS_URL": self.stack.redis.url_of(SERVER), "MEMORY_MASTER_KEY": MASTER_KEY, "MEMORY_PORT": "0"}
        where = ("--namespace", self.namespace) if scoped else ()
        return await asyncio.to_thread(CliRunner().invoke, cli.app, [*words, *where], env={**known, **environment})

    async def json(self, *words: str, scoped: bool = True) -> Any:
        """Run a command that must succeed, and return its JSON answer."""
        result = await self.run(*words, "--json", scoped=scoped)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    async def refused(self, *words: str) -> BaseException:
        """Run a command that must be refused, and return the refusal."""
        result = await self.run(*words)
        assert result.exception is not None, result.stdout
        return result.exception

    async def audited(self) -> list[dict[str, str]]:
        """Return the audit entries of the console."""
        rows = await self.stack.client.xrange(Keys(self.namespace).audit)
        entries = [SignedEntry(at, tuple(part for pair in row.items() for part in pair)).fields for at, row in rows]
        return [entry for entry in entries if entry["who"] == "console"]
