"""Connects to Redis: clients, deadlines, start-up checks, error translation.

redis-py's retries are off everywhere: to retry a write whose answer was lost can apply it twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from memory_core.crypto.secret_files import secret_of
from memory_core.errors import (
    InvalidArgument,
    MemoryServiceError,
    OutcomeUnknown,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    UnsafeStart,
)
from memory_core.records.damage import is_wrong_type
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store.cluster import ClusterClient
from memory_core.store.command_packing import pack_by_hiredis
from memory_core.store.sentinel import follow_master
from memory_core.store.urls import Address, RedisUrl, read_url

OLDEST_REDIS = (8, 2)
COMMAND_SECONDS = 5.0
CONNECT_SECONDS = 5.0
MOST_CONNECTIONS = 64  # Per client. Further commands wait for a connection within their deadline.
MEMORY = "memory"  # durability level of a Redis without an append-only file
_RETRY_AFTER = 1.0
_REFUSALS = ("MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN", "OOM", "NOPERM", "ACL failure", "BUSY ")
_NO_SPACE = os.strerror(errno.ENOSPC)
_FULL = "the memory of Redis is full: reads, deletions and ends work, what adds to it does not"
_MAKE_ROOM = "delete memories with clear_memory, or have an operator raise maxmemory"
_URLS = (
    "redis://[user:password@]host:port/0, rediss://…, unix://…, redis+cluster://host:port,… "
    "or redis+sentinel://host:port,…/service"
)
_REFUSING = (redis_errors.NoPermissionError, redis_errors.ClusterDownError)  # redis-py leaves out their codes


def redis_url(settings: Settings) -> str | None:
    """Return the configured URL; None without one. Raises UnsafeStart if the password file cannot be read."""
    url = settings.redis_url or settings.redis.url
    if url is not None:
        return url.get_secret_value()
    redis = settings.redis
    if redis.host is None:
        return None
    secret = secret_of(redis.password, redis.password_file, "redis.password") or ""
    login = f"{quote(redis.username or '', safe='')}:{quote(secret, safe='')}@" if secret or redis.username else ""
    host = f"[{redis.host}]" if ":" in redis.host else redis.host
    return f"redis://{login}{host}:{redis.port}/{redis.db}"


def connect(url: str, *, timeout: float | None = None) -> Client:
    """Make a client that connects when first used. Bytes in, bytes out, RESP3.

    `timeout` in seconds is redis-py's, for blocking readers only: on Python 3.11 it loses cancellations.
    Other commands get their deadline from `store_errors`.

    Raises:
        InvalidArgument: not a URL of Redis.
    """
    try:
        parsed = read_url(url)
        pool = _make_pool(parsed, timeout)
    except ValueError:
        # Without its cause: urllib quotes a part of the URL, which may be the password.
        raise InvalidArgument("REDIS_URL is not a URL of Redis", hint=_URLS) from None
    if parsed.kind == "cluster":
        return ClusterClient(parsed, lambda address: _make_pool(parsed, timeout, address))
    if parsed.kind == "sentinel":
        pool = follow_master(pool, parsed)
    return Redis.from_pool(pool)


def _make_pool(url: RedisUrl, timeout: float | None, address: Address | None = None) -> BlockingConnectionPool:
    where = {"host": address[0], "port": address[1]} if address else {}
    options: Any = {
        "connection_class": Connection,
        "max_connections": MOST_CONNECTIONS,
        "timeout": None,
        "protocol": 3,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": timeout,
        "socket_connect_timeout": CONNECT_SECONDS,
        "health_check_interval": 0,
    }
    return pack_by_hiredis(BlockingConnectionPool(**(options | url.options | where)))


async def shards(client: Client) -> list[Client]:
    """Return a client of each shard of a cluster, or else the client itself."""
    return await client.shards() if is_cluster(client) else [client]


async def shard_of(client: Client, keys: Sequence[str]) -> Client:
    """Return a client of the master that has some keys of one slot; without keys, of any master."""
    return await client.shard_of(keys[0] if keys else "") if is_cluster(client) else client


def is_cluster(client: Client) -> bool:
    return hasattr(client, "shards")


@asynccontextmanager
async def store_errors(*, writing: bool = False, deadline: float = COMMAND_SECONDS) -> AsyncGenerator[None]:
    """Apply a deadline in seconds to commands, and translate Redis's errors.

    Raises:
        StoreUnavailable: Redis is down, loading, full or read-only. Nothing was changed.
        OutcomeUnknown: after a write was sent, the connection broke or the deadline passed.
    """
    try:
        async with asyncio.timeout(deadline):
            yield
    except redis_errors.BusyLoadingError as error:
        raise StoreUnavailable("Redis is loading its data", hint="try again", retry_after=_RETRY_AFTER) from error
    except (redis_errors.TimeoutError, redis_errors.ConnectionError, OSError) as error:
        raise _broken(error, writing) from error
    except redis_errors.OutOfMemoryError as error:
        raise StoreFull(_FULL, hint=_MAKE_ROOM) from error
    except redis_errors.ReadOnlyError as error:
        raise StoreRefused(f"Redis refuses writes: {error}", hint="connect to its master, then retry") from error
    except (redis_errors.AskError, redis_errors.TryAgainError) as error:
        raise StoreUnavailable(
            "this namespace is moving to another node of the cluster", hint="try again", retry_after=_RETRY_AFTER
        ) from error
    except redis_errors.ResponseError as error:
        if str(error).startswith("MISCONF") and _NO_SPACE in str(error):
            message = "the disk of Redis is full: reads work, writes do not"
            raise StoreFull(message, hint="free space on it, then retry") from error
        if is_wrong_type(error):
            hint = "an operator restores or deletes it; docs/inside.md lists the keys"
            raise StoreRefused("a key in Redis is of another type than the servers write", hint=hint) from error
        if isinstance(error, _REFUSING) or str(error).startswith(_REFUSALS):
            raise StoreRefused(f"Redis refuses: {str(error)[:120]}", hint="fix Redis, then retry") from error
        raise


def _broken(error: BaseException, writing: bool) -> StoreUnavailable | OutcomeUnknown:
    if isinstance(error.__cause__ or error, redis_errors.AuthenticationError):
        return StoreRefused("Redis refuses this user or password", hint="fix REDIS_URL")
    never_sent = "connecting" in str(error).lower() or isinstance(error, ConnectionRefusedError | FileNotFoundError)
    if writing and not never_sent:
        return OutcomeUnknown(
            "the connection to Redis broke before it answered",
            hint="read the memory back, or repeat the call with the same idempotency_key",
            retry_after=_RETRY_AFTER,
        )
    return StoreUnavailable("Redis does not answer", hint="see `redis-memory doctor`", retry_after=_RETRY_AFTER)


async def check_server(client: Client) -> dict[str, Any]:
    """Refuse a Redis that puts data or answers at risk, and return its INFO.

    Raises:
        UnsafeStart: older than 8.2, no Query Engine, a database other than 0, or eviction is on.
        StoreUnavailable: Redis does not answer.
    """
    async with store_errors():
        for shard in await shards(client):
            info, modules = await shard.info(), await shard.execute_command("MODULE", "LIST")
            if is_cluster(client):
                info.pop("cluster_enabled", None)
            for problem in unsafe(info, modules, client.connection_pool.connection_kwargs.get("db", 0)).values():
                raise problem
            await _fail_on_timeout(shard)
        return await client.info()


def unsafe(info: dict[str, Any], modules: Any, database: int) -> dict[str, UnsafeStart]:
    """Return what puts data or answers at risk: version, modules, policy, cluster, database."""
    found: dict[str, UnsafeStart] = {}

    def refuse(what: str, is_unsafe: bool, message: str, hint: str) -> None:
        if is_unsafe:
            found[what] = UnsafeStart(message, hint=hint)

    version, policy = str(info["redis_version"]), info.get("maxmemory_policy", "noeviction")
    is_old = tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS
    refuse("version", is_old, f"Redis {version} is too old; 8.2 or newer is needed", "upgrade it")
    has_search = any(b"search" in _flatten(module) for module in modules)
    hint = "use Redis 8 with the Query Engine, or unset REDIS_URL for the embedded one"
    refuse("modules", not has_search, "this Redis has no Query Engine (module `search`)", hint)
    message = f"maxmemory-policy is {policy}, which drops memories silently"
    refuse("policy", policy != "noeviction", message, "CONFIG SET maxmemory-policy noeviction")
    is_node = bool(int(info.get("cluster_enabled", 0)))
    refuse("cluster", is_node, "this Redis is a node of a cluster", "use redis+cluster://host:port,host:port")
    refuse("database", database != 0, "the Query Engine indexes database 0 only", "remove it from the URL")
    return found


async def is_usable(url: str) -> bool:
    """Whether a Redis that passes `check_server` answers at a URL."""
    client = connect(url)
    try:
        await check_server(client)
        return True
    except MemoryServiceError:
        return False
    finally:
        await client.aclose()


async def _fail_on_timeout(client: Client) -> None:
    """Make searches fail rather than answer in part. If this cannot be set, their warnings still show it."""
    with contextlib.suppress(redis_errors.ResponseError, StoreRefused):
        async with store_errors():
            configured = await client.execute_command("FT.CONFIG", "GET", "ON_TIMEOUT")
        if b"fail" in [value.lower() for value in _flatten(configured) if isinstance(value, bytes)]:
            return
    for command in (("FT.CONFIG", "SET", "ON_TIMEOUT", "FAIL"), ("CONFIG", "SET", "search-on-timeout", "fail")):
        with contextlib.suppress(redis_errors.ResponseError, StoreRefused):
            async with store_errors():
                await client.execute_command(*command)
            return


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [item for pair in value.items() for part in pair for item in _flatten(part)]
    if isinstance(value, list | tuple):
        return [item for part in value for item in _flatten(part)]
    return [value]


def on_reconnect(client: Client, notify: Callable[[], None]) -> None:
    """Call `notify` whenever the client opens a connection, because Redis may have restarted."""

    async def opened(connection: Any) -> None:
        await connection.on_connect()
        notify()

    def watch(node: Client) -> None:
        node.connection_pool.connection_kwargs["redis_connect_func"] = opened

    if is_cluster(client):
        client.watch_nodes(watch)
    else:
        watch(client)


def on_move(client: Client, notify: Callable[[], None]) -> None:
    """Call `notify` when keys move to other nodes of a cluster."""
    if is_cluster(client):
        client.on_move = notify


async def durability(client: Client, info: dict[str, Any]) -> str:
    """Return the durability of an acknowledged write: the append-only file and its fsync policy."""
    if not int(info.get("aof_enabled", 0)):
        return MEMORY
    try:
        async with store_errors():
            policy = await client.config_get("appendfsync")
    except (StoreRefused, redis_errors.ResponseError):
        return "aof"
    return f"aof-{policy.get('appendfsync', 'everysec')}"
