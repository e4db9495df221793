"""Queries the embedded Redis: its answers decide whether it runs, not process ids."""

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
    """Return the URL for redis-py: `unix://:<password>@/path`."""
    return f"unix://:{quote(password, safe='')}@{quote(socket)}"


def port_url(port: int, password: str) -> str:
    """Return the loopback URL, for people and tools without Unix sockets."""
    return f"redis://:{quote(password, safe='')}@127.0.0.1:{port}/0"


class _Unavailable(Exception):
    """Redis does not answer."""


class _Loading(_Unavailable):
    """Redis reads its AOF."""


async def health(url: str) -> Health:
    """Return whether Redis answers; `loading` while it reads its AOF."""
    try:
        async with _connected(url) as redis:
            await redis.execute_command("PING")
    except _Loading:
        return "loading"
    except _Unavailable:
        return "down"
    return "ready"


async def version(url: str) -> str | None:
    """Return the version of Redis; None if it does not answer."""
    try:
        async with _connected(url) as redis:
            info: dict[str, Any] = await redis.info("server")
    except _Unavailable:
        return None
    return str(info.get("redis_version"))


async def shut_down(url: str) -> None:
    """Ask Redis to save and stop. Does not wait: check its process or its lock."""
    with suppress(_Unavailable):
        async with _connected(url) as redis:
            await redis.execute_command("SHUTDOWN")


async def shut_down_orphan(address: Address | None, password: str) -> None:
    """Ask a Redis without supervisor to stop.

    Only by its socket: once Redis has ended, another user may listen on its port and would receive the password.
    """
    if address is not None:
        await shut_down(socket_url(address.socket, password))


@asynccontextmanager
async def _connected(url: str) -> AsyncGenerator[Redis]:
    # Imported here, because that takes .25 s: meanwhile Redis starts, and a stdio server answers its client.
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import BusyLoadingError, RedisError

    redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=2, socket_connect_timeout=2)
    try:
        yield redis
    except BusyLoadingError:
        raise _Loading from None
    except (RedisError, OSError, TimeoutError):
        raise _Unavailable from None
    finally:
        await redis.aclose()
