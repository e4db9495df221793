"""`redis-memory status`: shows what runs and what each namespace holds."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import typer

from memory_server.cli import lazy
from memory_server.cli.console import CHECK_FAILED, Console, common_options
from memory_server.contract.untrusted_text import counted

if TYPE_CHECKING:
    from memory_core.store.sidecar import SidecarStatus
    from memory_server.operations.status import NamespaceState, RedisState, ServerState, Status

_SIDECAR_COLUMNS = ("sidecar", "state", "model", "device", "backend", "texts/s", "queue", "host")
_RECENTLY_SECONDS = 2.5
_NAMESPACE_COLUMNS = ("namespace", "memories", "without vector", "embed jobs", "agents alive", "tasks")


@common_options("as_json", "config", "data_dir")
def status(console: Console) -> None:
    """Show Redis, the server, the sidecars and each namespace's contents. Exits with 1 if Redis does not run."""
    found = asyncio.run(lazy.status.read_status(console.settings))
    console.show(found.model_dump(mode="json"), lambda: _print(found))
    if not found.redis.answers:
        raise typer.Exit(CHECK_FAILED)


def _print(found: Status) -> None:
    processes = _processes(found.server) if found.redis.answers else None
    servers = [("HTTP server", _server(one)) for one in (found.server, *found.more_servers)]
    lazy.printing.pairs([("Redis", _redis(found.redis)), *servers, ("server processes", processes)])
    if found.sidecars:
        lazy.printing.line("")
        lazy.printing.table(_SIDECAR_COLUMNS, map(_sidecar, found.sidecars))
    elif found.redis.answers:
        lazy.printing.line("No sidecar is running: search uses keywords only. Run `redis-memory doctor` for details.")
    if found.namespaces:
        lazy.printing.line("")
        lazy.printing.table(_NAMESPACE_COLUMNS, map(_namespace, found.namespaces))


def _redis(redis: RedisState) -> str:
    if not redis.answers:
        return f"not running: {redis.why}"
    kind = "embedded, " if redis.embedded else ""
    uptime, size = timedelta(seconds=redis.uptime_seconds or 0), (redis.used_memory or 0) >> 20
    return f"{redis.version}, {kind}{redis.address}, up {uptime}, {size} MiB, {counted(redis.clients or 0, 'client')}"


def _processes(server: ServerState) -> str:
    """Say whether server processes run. A killed server's lease lasts some seconds, so its age is told."""
    if not server.servers:
        return "none running"
    seen = server.servers_seen or 0.0
    return "running" if seen < _RECENTLY_SECONDS else f"last seen {seen:.0f} s ago"


def _server(server: ServerState) -> str:
    if not server.answers:
        return server.why or f"none at {server.url}"
    return f"{server.url}, {'ready' if server.ready else f'not ready: {server.why}'}"


def _sidecar(one: SidecarStatus) -> tuple[object, ...]:
    rate = f"{one.texts_per_second:.0f}"
    return one.id, one.state, one.model, one.device, one.backend, rate, one.queue_depth, one.host


def _namespace(one: NamespaceState) -> tuple[object, ...]:
    return (
        one.namespace,
        _count(one.memories),
        _count(one.waiting_for_vectors),
        f"{one.embed_jobs}, {one.failed_jobs} failed",
        f"{one.agents_alive} of {one.agents}",
        f"{one.open_tasks} open, {one.dead_tasks} dead",
    )


def _count(number: int | None) -> object:
    return "no index" if number is None else number
