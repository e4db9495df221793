"""`redis-memory duplicates` and `clusters`: an agent's own memories at a glance, from a shell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from memory_core.errors import MemoryServiceError
from memory_server.cli_agents import Config, DataDir, Namespace, load_settings

if TYPE_CHECKING:
    from memory_core.records import Record
    from memory_core.settings import Settings
    from memory_server.service import Service

T = TypeVar("T")
_WAIT_SECONDS = 300.0
_SHORT = 100
Agent = Annotated[str, typer.Argument(help="Name of the agent whose own memories are looked at.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


def add_reports(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(duplicates)
    app.command()(clusters)


def duplicates(
    agent: Agent,
    least: Annotated[float, typer.Option(help="Cosine from which two say nearly the same, .5 to 1.")] = 0.95,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Show which of an agent's memories say nearly the same."""
    from memory_server.usecases.principals import Caller
    from memory_server.usecases.reports import near_duplicates

    settings = load_settings(config, data_dir, namespace)
    caller = Caller(settings.namespace, agent)
    groups, left_out = _with_service(
        settings, lambda service: near_duplicates(service, caller, least=least, wait=_WAIT_SECONDS)
    )
    if as_json:
        listed = [{"cosine": one.cosine, "memories": [_row(record) for record in one.records]} for one in groups]
        typer.echo(json.dumps({"groups": listed, "pairs_left_out": left_out}, indent=2))
        return
    for one in groups:
        typer.echo(f"cosine {one.cosine:.3f}")
        for record in one.records:
            typer.echo(f"  {record.id}  {_short(record)}")
    typer.echo(f"{len(groups)} groups." + (f" {left_out} less alike pairs were left out." if left_out else ""))


def clusters(
    agent: Agent,
    count: Annotated[int, typer.Option(min=1, max=256, help="How many parts.")] = 16,
    show: Annotated[int, typer.Option(min=1, max=100, help="Memories shown of each.")] = 3,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Part an agent's memories by meaning."""
    from memory_server.usecases import reports
    from memory_server.usecases.principals import Caller

    settings = load_settings(config, data_dir, namespace)
    caller = Caller(settings.namespace, agent)
    found = _with_service(
        settings, lambda service: reports.clusters(service, caller, count=count, show=show, wait=_WAIT_SECONDS)
    )
    if as_json:
        listed = [
            {"size": one.size, "closeness": one.closeness, "examples": [_row(record) for record in one.examples]}
            for one in found
        ]
        typer.echo(json.dumps({"clusters": listed}, indent=2))
        return
    for one in found:
        typer.echo(f"{one.size} memories, closeness {one.closeness:.2f}")
        for record in one.examples:
            typer.echo(f"  {record.id}  {_short(record)}")


def _row(record: Record) -> dict[str, Any]:
    return {"memory_id": record.id, "content": record.content}


def _short(record: Record) -> str:
    text = " ".join(record.content.split())
    return text if len(text) <= _SHORT else text[:_SHORT] + "…"


def _with_service(settings: Settings, action: Callable[[Service], Awaitable[T]]) -> T:
    return asyncio.run(_served(settings, action))


async def _served(settings: Settings, action: Callable[[Service], Awaitable[T]]) -> T:
    """Run an action on a service of its own; its refusal is raised outside the task group, which would wrap it."""
    from memory_server.service import Service

    refused: MemoryServiceError
    async with Service(settings).running() as service:
        try:
            return await action(service)
        except MemoryServiceError as error:
            refused = error
    raise refused
