"""Reads the status of Redis, the server, the sidecars and the namespaces. Starts nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import httpx2
from pydantic import BaseModel
from redis.exceptions import ResponseError

from memory_core.errors import MemoryServiceError
from memory_core.records import redis_time
from memory_core.records.keys import NAMESPACES, SWEEPER, Keys
from memory_core.records.model import count_jobs, read_models
from memory_core.records.names import only_names
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store import sidecar
from memory_core.store.connection import connect, store_errors
from memory_core.store.sidecar import SidecarStatus
from memory_server.index import queries as candidates
from memory_server.index import query_builder as build
from memory_server.local.running import (
    RunningRedis,
    address_of,
    configured_url,
    find_running,
    find_servers,
    has_users,
    no_server,
)
from memory_server.operations.health.machine import livez
from memory_server.operations.sweeper import LEASE_SECONDS


class RedisState(BaseModel):
    """Redis. `why` is the reason that it does not answer."""

    address: str = ""
    answers: bool = False
    why: str | None = None
    embedded: bool = False
    version: str | None = None
    uptime_seconds: int | None = None
    used_memory: int | None = None
    clients: int | None = None


class ServerState(BaseModel):
    """An HTTP server. `servers`: whether any server process uses this Redis, also over stdio.

    Servers of an external Redis renew a lease there; `servers_seen` is how many seconds ago they did.
    """

    url: str
    answers: bool = False
    ready: bool = False
    why: str | None = None
    servers: bool = False
    servers_seen: float | None = None


class NamespaceState(BaseModel):
    """The contents of a namespace. Counts are null if the index is missing."""

    namespace: str
    memories: int | None = None
    waiting_for_vectors: int | None = None
    embed_jobs: int = 0
    failed_jobs: int = 0
    agents: int = 0
    agents_alive: int = 0
    open_tasks: int = 0
    dead_tasks: int = 0


class Status(BaseModel):
    """The status of a deployment."""

    redis: RedisState = RedisState()
    server: ServerState
    """The newest one on the data directory."""
    more_servers: list[ServerState] = []
    sidecars: list[SidecarStatus] = []
    namespaces: list[NamespaceState] = []


async def read_status(settings: Settings) -> Status:
    """Read the status. A part that does not answer is reported, not raised."""
    first, *more = await asyncio.gather(*map(_read_server, find_servers(settings) or [""]))
    if not first.url:
        first.url, first.why = f"{configured_url(settings)}/mcp", no_server(settings).message
    found = Status(server=first, more_servers=more)
    try:
        running = await find_running(settings)
    except MemoryServiceError as error:
        found.redis.why = f"{error.message} ({error.hint})" if error.hint else error.message
        return found
    found.redis = RedisState(address=_address(running), embedded=running.paths is not None)
    client = connect(running.url)
    try:
        await _read_redis(client, found, settings, running)
    except MemoryServiceError as error:
        found.redis.why = error.message
    finally:
        await client.aclose()
    return found


async def _read_server(url: str) -> ServerState:
    state = ServerState(url=f"{url}/mcp" if url else "")
    if not url or not await livez(url):
        return state
    state.answers = True
    try:
        async with httpx2.AsyncClient(verify=False, timeout=5, trust_env=False) as http:  # nosec B501
            health: dict[str, Any] = (await http.get(f"{url}/readyz")).json()
    except (httpx2.HTTPError, ValueError) as error:
        state.why = type(error).__name__
        return state
    state.ready, state.why = bool(health.get("ready")), health.get("reason")
    return state


async def _read_redis(client: Client, found: Status, settings: Settings, running: RunningRedis) -> None:
    async with store_errors():
        info = await client.info()
        names = only_names(await client.smembers(NAMESPACES))
        left = await client.pttl(SWEEPER) / 1000
        found.sidecars = await sidecar.living(client)
    # The lease outlives a server that was killed. The lock does not, but only the embedded Redis has one.
    found.server.servers = has_users(running.paths) if running.paths else left > 0
    found.server.servers_seen = round(LEASE_SECONDS - left, 1) if left > 0 and not running.paths else None
    redis = found.redis
    redis.answers, redis.version = True, str(info["redis_version"])
    redis.uptime_seconds, redis.used_memory = int(info["uptime_in_seconds"]), int(info["used_memory"])
    redis.clients = int(info["connected_clients"])
    found.namespaces = [await _count(client, Keys(name), settings) for name in names]


async def _count(client: Client, keys: Keys, settings: Settings) -> NamespaceState:
    now = redis_time.now()
    pipe = client.pipeline(transaction=False)
    pipe.xlen(keys.dead_jobs)
    pipe.zcard(keys.agents)
    pipe.zcount(keys.agents, now, "+inf")
    pipe.hget(keys.counters, "open_tasks")
    pipe.xlen(keys.dead_tasks)
    async with store_errors():
        failed, agents, alive, tasks, dead = await pipe.execute()
        (jobs,) = await count_jobs(client, [keys])
        models = await read_models(client, keys)
    model = models.current if models else settings.vector_store.model
    queries = [build.all_memories(), build.unfinished(model)]
    memories = waiting = None
    with suppress(ResponseError):
        async with store_errors():
            memories, waiting = await candidates.count_all(client, keys, queries, settings.search_timeout_ms)
    return NamespaceState(
        namespace=keys.namespace,
        memories=memories,
        waiting_for_vectors=waiting,
        embed_jobs=jobs,
        failed_jobs=failed,
        agents=agents,
        agents_alive=alive,
        open_tasks=int(tasks or 0),
        dead_tasks=dead,
    )


def _address(running: RunningRedis) -> str:
    """Return the address of Redis without its credentials."""
    if running.state:
        return f"{running.state.socket}, 127.0.0.1:{running.state.port}"
    return address_of(running.url)
