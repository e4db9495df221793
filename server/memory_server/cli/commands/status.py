"""`redis-memory status`: what runs, and how much of what there is."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import typer

from memory_server.cli.console import TO_MEND, AsJson, Config, DataDir, load_settings

if TYPE_CHECKING:
    from memory_server.operations.status import Status


def status(as_json: AsJson = False, config: Config = None, data_dir: DataDir = None) -> None:
    """Say what runs: Redis, the server, sidecars, and what each namespace holds. Exits with 1 where Redis does not."""
    from memory_server.cli import printing
    from memory_server.operations.status import look

    found = asyncio.run(look(load_settings(config, data_dir)))
    if as_json:
        printing.emit(found.model_dump(mode="json"))
    else:
        _print(found)
    if not found.redis.answers:
        raise typer.Exit(TO_MEND)


def _print(found: Status) -> None:
    from memory_server.cli import printing

    redis, server = found.redis, found.server
    kind = "embedded, " if redis.embedded else ""
    up, size = timedelta(seconds=redis.uptime_seconds or 0), (redis.used_memory or 0) >> 20
    told = f"{redis.version}, {kind}{redis.address}, up {up}, {size} MiB, {redis.clients} clients"
    printing.pairs(
        [
            ("Redis", told if redis.answers else f"does not run: {redis.why}"),
            ("HTTP server", _server(found)),
            ("server processes", ("at work" if server.servers else "none at work") if redis.answers else None),
        ]
    )
    if found.sidecars:
        typer.echo("")
        rows = (
            (
                one.id,
                one.state,
                one.model,
                one.device,
                one.backend,
                f"{one.texts_per_second:.0f}",
                one.queue_depth,
                one.host,
            )
            for one in found.sidecars
        )
        printing.table(("sidecar", "state", "model", "device", "by", "texts/s", "queue", "host"), rows)
    elif redis.answers:
        typer.echo("No sidecar is alive: searches go by words only. redis-memory doctor tells more.")
    if found.namespaces:
        typer.echo("")
        rows = (
            (n.namespace, _known(n.memories), _known(n.waiting_for_vectors), jobs, agents, tasks)
            for n in found.namespaces
            for jobs in [f"{n.embed_jobs}, {n.failed_jobs} failed"]
            for agents in [f"{n.agents_alive} of {n.agents}"]
            for tasks in [f"{n.open_tasks} open, {n.dead_tasks} dead"]
        )
        names = ("namespace", "memories", "no vector yet", "embed jobs", "agents alive", "tasks")
        printing.table(names, rows)


def _server(found: Status) -> str:
    server = found.server
    if not server.answers:
        return f"none at {server.url}"
    return f"{server.url}, {'ready' if server.ready else f'not ready: {server.why}'}"


def _known(number: int | None) -> object:
    return "no index" if number is None else number
