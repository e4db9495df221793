"""The few questions that are put to the embedded Redis itself, so that its answers and not pids decide."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from memory_server.local.paths import Address

Health = Literal["ready", "loading", "down"]


def socket_url(socket: str, password: str) -> str:
    """Return the form that redis-py reads: `unix://:<password>@/path`."""
    return f"unix://:{quote(password, safe='')}@{quote(socket)}"


def port_url(port: int, password: str) -> str:
    """Return the loopback URL, for people and tools that know no Unix sockets."""
    return f"redis://:{quote(password, safe='')}@127.0.0.1:{port}/0"


async def health(url: str) -> Health:
    """Say whether Redis answers; one that reads its AOF is `loading`."""
    from redis.exceptions import BusyLoadingError, RedisError

    try:
        async with _connected(url) as redis:
            await redis.execute_command("PING")
    except BusyLoadingError:
        return "loading"
    except (RedisError, OSError, TimeoutError):
        return "down"
    return "ready"


async def version(url: str) -> str | None:
    """Return the version of the Redis at `url`, None when it does not answer."""
    from redis.exceptions import RedisError

    try:
        async with _connected(url) as redis:
            info: dict[str, Any] = await redis.info("server")
    except (RedisError, OSError, TimeoutError):
        return None
    return str(info.get("redis_version"))


async def shut_down(url: str) -> None:
    """Ask Redis to write everything and end. Whether it ended, its process or its lock tells."""
    from redis.exceptions import RedisError

    with suppress(RedisError, OSError, TimeoutError):
        async with _connected(url) as redis:
            await redis.execute_command("SHUTDOWN")


async def shut_down_orphan(address: Address | None, password: str) -> None:
    """Ask the Redis of a supervisor that was killed to end, by its socket or else its port."""
    if address is not None:
        await shut_down(socket_url(address.socket, password))
        await shut_down(port_url(address.port, password))


@asynccontextmanager
async def _connected(url: str) -> AsyncGenerator[Redis]:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=2, socket_connect_timeout=2)
    try:
        yield redis
    finally:
        await redis.aclose()
