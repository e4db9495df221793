"""Runs `redis-memory` on the Redis of the session's stack."""

from __future__ import annotations

from support.redis_users import SERVER
from support.stack import MASTER_KEY, Stack
from support.transfer_helpers import Shell


async def console(stack: Stack, *arguments: str, key: bool = True) -> tuple[int, str]:
    """Run `redis-memory`; return its exit code and output."""
    result = await Shell(stack.redis.url_of(SERVER), MASTER_KEY if key else None).run(*arguments)
    return result.code, result.output
