"""Connections to the master that Sentinels name, asked for each new connection: after a failover it is another."""

from __future__ import annotations

from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from memory_core.store.urls import Address, Place

_ASK_SECONDS = 1.0
_OWN = ("username", "password")


def led_by_sentinels(pool: BlockingConnectionPool, place: Place) -> BlockingConnectionPool:
    """Have a pool make connections to the master of a place, wherever that is."""
    options = {name: pool.connection_kwargs.pop(f"sentinel_{name}", None) for name in _OWN}
    base: Any = pool.connection_class
    if issubclass(base, SSLConnection):
        said = pool.connection_kwargs
        options |= {"ssl": True} | {name: value for name, value in said.items() if name.startswith("ssl_")}

    class Led(base):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass] - TCP or TLS, as the URL says
        async def _connect(self) -> None:
            self.host, self.port = await _master_of(place, options)
            await super()._connect()

        async def read_response(self, *args: Any, **named: Any) -> Any:
            try:
                return await super().read_response(*args, **named)
            except redis_errors.ReadOnlyError:
                await self.disconnect()  # it is a replica by now; the next command asks who is not
                raise

    pool.connection_class = Led
    return pool


async def _master_of(place: Place, options: dict[str, Any]) -> Address:
    """Ask one Sentinel after the other.

    Raises:
        OSError: none knows.
    """
    for host, port in place.seeds:
        sentinel = Redis(
            host=host,
            port=port,
            socket_timeout=_ASK_SECONDS,
            socket_connect_timeout=_ASK_SECONDS,
            retry=Retry(NoBackoff(), 0),
            **options,
        )
        try:
            found = await sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", place.service)
        except (redis_errors.RedisError, OSError):
            continue
        finally:
            await sentinel.aclose()
        if found:
            return found[0].decode(), int(found[1])
    raise OSError(f"no Sentinel names a master of {place.service}")
