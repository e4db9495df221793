"""What the tests of trust share: the console on the Redis of the session."""

from __future__ import annotations

import asyncio

from typer.testing import CliRunner

from memory_core.errors import MemoryServiceError
from memory_server import cli
from memory_server.cli.console import EXIT_CONFIG
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Stack


async def console(stack: Stack, *arguments: str, key: bool = True) -> tuple[int, str]:
    """Run `redis-memory`; give its exit code and what it said."""
    environment = {"REDIS_URL": stack.redis.url_of(SERVER)} | ({"MEMORY_MASTER_KEY": MASTER_KEY} if key else {})
    result = await asyncio.to_thread(CliRunner().invoke, cli.app, list(arguments), env=environment)
    if isinstance(result.exception, MemoryServiceError):
        return EXIT_CONFIG, f"{result.exception.code}: {result.exception.message}"
    return result.exit_code, result.stdout
