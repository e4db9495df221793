"""Connections to the master that Sentinels name. Each new connection asks again, since a failover changes it."""

from __future__ import annotations

from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff

from memory_core.store.urls import RedisUrl

_ASK_SECONDS = 1.0
_LOGIN = ("username", "password")


def follow_master(pool: BlockingConnectionPool, url: RedisUrl) -> BlockingConnectionPool:
    """Make a pool connect to the current master of a service."""
    options = {name: pool.connection_kwargs.pop(f"sentinel_{name}", None) for name in _LOGIN}
    options |= {"socket_timeout": _ASK_SECONDS, "socket_connect_timeout": _ASK_SECONDS, "retry": Retry(NoBackoff(), 0)}
    base: Any = pool.connection_class
    if issubclass(base, SSLConnection):
        tls = {name: value for name, value in pool.connection_kwargs.items() if name.startswith("ssl_")}
        options |= {"ssl": True} | tls

    class MasterConnection(base):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass] - TCP or TLS, as the URL says
        async def _connect(self) -> None:
            async with Sentinel(url.seeds, sentinel_kwargs=options) as sentinels:
                try:
                    self.host, self.port = await sentinels.discover_master(url.service)
                except MasterNotFoundError as error:
                    raise OSError(f"no Sentinel names a master of {url.service}") from error
            await super()._connect()

        async def read_response(self, *args: Any, **named: Any) -> Any:
            try:
                return await super().read_response(*args, **named)
            except redis_errors.ReadOnlyError:
                await self.disconnect()  # this server is now a replica; the next command asks for the master
                raise

    pool.connection_class = MasterConnection
    return pool
