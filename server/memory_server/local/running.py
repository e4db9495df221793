"""Finds the Redis that runs already, for commands that look or act and start nothing, and its keys."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from memory_core.crypto.keyring import Keyring, load_keyring
from memory_core.errors import StoreUnavailable
from memory_core.settings.settings import Settings
from memory_core.store.connection import Client, connect, is_usable, redis_url
from memory_server.local import client as local_client
from memory_server.local import locks
from memory_server.local.paths import LocalPaths, State, locate, password_of, read_state


@dataclass(frozen=True, slots=True)
class Running:
    """A Redis, and of the embedded one its files and what its supervisor runs."""

    url: str
    paths: LocalPaths | None = None
    state: State | None = None


async def find_running(settings: Settings) -> Running:
    """Find the Redis that the settings name, else the embedded one. Whether the former answers is not asked.

    Raises:
        StoreUnavailable: none is named, and the embedded one does not run.
    """
    url = redis_url(settings)
    if url is not None and not (settings.uses_config_default_redis and not await is_usable(url)):
        return Running(url)
    paths = locate(settings.data_dir)
    state = read_state(paths)
    if state is None or not locks.is_held(paths.supervisor_lock):
        raise StoreUnavailable(f"nothing runs on {paths.data_dir}", hint="start it with redis-memory serve")
    return Running(local_client.socket_url(state.socket, password_of(paths)), paths, state)


@asynccontextmanager
async def connected(settings: Settings) -> AsyncGenerator[Client]:
    """Connect to what runs.

    Raises:
        StoreUnavailable: nothing does.
    """
    client = connect((await find_running(settings)).url)
    try:
        yield client
    finally:
        await client.aclose()


def keyring_of(settings: Settings, paths: LocalPaths | None) -> Keyring:
    """Read the keys that a server has: those set, and with the embedded Redis, whose `paths` these are, its own.

    Raises:
        UnsafeStart: a key cannot be read.
    """
    return load_keyring(settings, paths.integrity_key if paths else None)


def keyring_by_settings(settings: Settings) -> Keyring:
    """Read the keys that a server would have, without asking what runs.

    Raises:
        UnsafeStart: a key cannot be read.
    """
    is_embedded = redis_url(settings) is None or settings.uses_config_default_redis
    return keyring_of(settings, locate(settings.data_dir) if is_embedded else None)
