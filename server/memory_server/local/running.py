"""Finds a running Redis and its keys, for commands that start nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from memory_core.crypto.keyring import HOW_TO_SET, Keyring, load_keyring
from memory_core.errors import StoreUnavailable, UnsafeStart
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store.connection import connect, is_usable, redis_url
from memory_server.local import client as local_client
from memory_server.local import locks
from memory_server.local.paths import LocalPaths, State, locate, password_of, read_state


@dataclass(frozen=True, slots=True)
class RunningRedis:
    """A running Redis. `paths` and `state` belong to the embedded one."""

    url: str
    paths: LocalPaths | None = None
    state: State | None = None


async def find_running(settings: Settings) -> RunningRedis:
    """Find the configured Redis, which need not answer, else the embedded one. Raises StoreUnavailable without both."""
    url = redis_url(settings)
    if url is not None and not (settings.uses_config_default_redis and not await is_usable(url)):
        return RunningRedis(url)
    paths = locate(settings.data_dir)
    state = read_state(paths)
    if state is None or not locks.is_held(paths.supervisor_lock):
        raise StoreUnavailable(f"no Redis is running on {paths.data_dir}", hint="start it with redis-memory serve")
    return RunningRedis(local_client.socket_url(state.socket, password_of(paths)), paths, state)


@asynccontextmanager
async def connected(settings: Settings) -> AsyncGenerator[Client]:
    """Connect to the running Redis. Raises StoreUnavailable: none is running."""
    client = connect((await find_running(settings)).url)
    try:
        yield client
    finally:
        await client.aclose()


def keyring_of(settings: Settings, paths: LocalPaths | None) -> Keyring:
    """Read a server's keys, with those of the embedded Redis in `paths`.

    Raises:
        UnsafeStart: a key is invalid, or the settings need one that is missing.
    """
    keyring = load_keyring(settings, paths.integrity_key if paths else None)
    if settings.secrets == "seal" and not keyring.masters:
        raise UnsafeStart("the setting secrets=seal needs a master key", hint=HOW_TO_SET)
    return keyring


def keyring_from_settings(settings: Settings) -> Keyring:
    """Read a server's keys without looking for a running Redis. Raises UnsafeStart for an invalid key."""
    is_embedded = redis_url(settings) is None or settings.uses_config_default_redis
    return keyring_of(settings, locate(settings.data_dir) if is_embedded else None)
