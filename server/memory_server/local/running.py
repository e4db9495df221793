"""Finds a running Redis, its namespaces and its keys, for commands that start nothing."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import urlsplit

from memory_core.crypto.keyring import HOW_TO_SET, Keyring, load_keyring
from memory_core.errors import NotFound, StoreUnavailable, UnsafeStart, echo
from memory_core.records.keys import AUDITED, NAMESPACES
from memory_core.records.names import only_names
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store.connection import connect, is_usable, redis_url, store_errors
from memory_server.local import client as local_client
from memory_server.local import locks
from memory_server.local.paths import (
    LocalPaths,
    State,
    check_folder,
    holds_memory,
    known_memories,
    locate,
    password_of,
    read_state,
)
from memory_server.local.servers import running_servers

_HAS_PORT = re.compile(r":\d+$")
_MOST_NAMED = 10
"""Namespaces or data directories that a refusal names."""


@dataclass(frozen=True, slots=True)
class RunningRedis:
    """A running Redis. `paths` and `state` belong to the embedded one."""

    url: str
    paths: LocalPaths | None = None
    state: State | None = None


async def find_running(settings: Settings) -> RunningRedis:
    """Find the configured Redis, which need not answer, else the embedded one.

    Raises:
        NotFound: the data directory holds no memory. StoreUnavailable: its Redis does not run.
    """
    url = redis_url(settings)
    if url is not None and not (settings.uses_config_default_redis and not await is_usable(url)):
        return RunningRedis(url)
    paths = existing_memory(settings)
    state = read_state(paths)
    if state is None or not locks.is_held(paths.supervisor_lock):
        hint = f"start it with redis-memory serve --data-dir {shlex.quote(str(paths.data_dir))}"
        raise StoreUnavailable(f"no Redis is running on {paths.data_dir}", hint=hint)
    return RunningRedis(local_client.socket_url(state.socket, password_of(paths)), paths, state)


def redis_names(settings: Settings) -> tuple[str, ...]:
    """Return the names of the Redis that servers with these settings use: its address, or "" for the embedded one.

    The embedded one that runs on the data directory also has its addresses as names.
    """
    url, state = redis_url(settings), read_state(locate(settings.data_dir))
    embedded = ("", *((state.socket, address_of(f"redis://127.0.0.1:{state.port}")) if state else ()))
    if url is None:
        return embedded
    address = address_of(url)
    return (address, *embedded) if settings.uses_config_default_redis or address in embedded else (address,)


def may_be_embedded(settings: Settings) -> bool:
    """Whether servers with these settings use the embedded Redis, at least if the stock one does not run."""
    return redis_url(settings) is None or settings.uses_config_default_redis


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listening address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(url: str) -> str:
    """Return the address of Redis without its credentials, the same for each spelling of one server."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    hosts, path = parts.netloc.rpartition("@")[2], parts.path
    if "+" not in parts.scheme:
        port = hosts.rpartition(":")[2] if _HAS_PORT.search(hosts) else "6379"
        host = _HAS_PORT.sub("", hosts).casefold()
        hosts, path = f"{'127.0.0.1' if host == 'localhost' else host}:{port}", f"/{path.strip('/') or 0}"
    return f"{parts.scheme}://{hosts}{path}"


def announced_servers(settings: Settings) -> list[str]:
    """Return the URLs of the HTTP servers that run on the data directory, the newest first."""
    return [one.url for one in running_servers(locate(settings.data_dir), redis_names(settings))]


def find_servers(settings: Settings) -> list[str]:
    """Return the URLs of the HTTP servers on the data directory, the newest first.

    An external Redis may also have servers on other machines: without one here, the configured address counts.
    """
    found = announced_servers(settings)
    return found or ([configured_url(settings)] if redis_url(settings) is not None and settings.port else [])


def has_users(paths: LocalPaths) -> bool:
    """Whether a server process, over HTTP or stdio, or a command uses the embedded Redis now."""
    return locks.is_shared(paths.users_lock)


def no_server(settings: Settings) -> StoreUnavailable:
    """Say that no HTTP server runs on the data directory, and where servers run."""
    if redis_url(settings) is not None:
        return StoreUnavailable("no HTTP server is running on this Redis", hint="start one with redis-memory serve")
    paths = locate(settings.data_dir)
    others = [str(one) for one in known_memories(paths) if running_servers(locate(one))][:_MOST_NAMED]
    option = "" if paths == locate(None) else f" --data-dir {shlex.quote(str(paths.data_dir))}"
    hint = f"start one with redis-memory serve{option}"
    if others:
        hint += f"; servers run on {', '.join(others)}, and --data-dir chooses"
    return StoreUnavailable(f"no server is running on the data directory {paths.data_dir}", hint=hint)


def configured_url(settings: Settings, port: int | None = None) -> str:
    """Return the URL of a server with these settings, on this machine."""
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104 # nosec B104
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.tls_cert else 'http'}://{shown}:{port or settings.port}"


def existing_memory(settings: Settings) -> LocalPaths:
    """Return the files of the data directory. Raises NotFound if it holds no memory; names those that exist."""
    paths = locate(settings.data_dir)
    check_folder(paths)
    if not holds_memory(paths.data_dir):
        known = ", ".join(map(str, known_memories(paths)[:_MOST_NAMED]))
        hint = f"memories are in {known}" if known else "redis-memory serve creates one"
        raise NotFound(f"there is no memory in {paths.data_dir}", hint=hint)
    return paths


async def check_namespace(client: Client, namespace: str) -> None:
    """Refuse a namespace in which nothing was ever written. Raises NotFound; names those that exist."""
    async with store_errors():
        names = set(only_names([*await client.smembers(NAMESPACES), *await client.smembers(AUDITED)]))
    if namespace in names:
        return
    if not names:
        hint = "an agent creates one with its first memory, `redis-memory import` with an import"
        raise NotFound(f"there is no namespace {echo(namespace)}: this memory has no namespace yet", hint=hint)
    near = get_close_matches(namespace, names, _MOST_NAMED, 0.5)
    shown = [*near, *sorted(names.difference(near))][:_MOST_NAMED]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    hint = f"namespaces here: {', '.join(shown)}{more}; --namespace chooses"
    raise NotFound(f"there is no namespace {echo(namespace)}", hint=hint)


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
    return keyring_of(settings, locate(settings.data_dir) if may_be_embedded(settings) else None)
