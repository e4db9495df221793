"""`redis-memory quarantine | purge | integrity`: what to do about memories that are not to be trusted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from memory_core.errors import ConfirmationNeeded, MemoryServiceError
from memory_server.cli_agents import Config, DataDir, Namespace

if TYPE_CHECKING:
    from memory_core.settings import Settings
    from memory_server.service import Service
    from memory_server.usecases.proving import Report

T = TypeVar("T")
quarantine = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Hide what an agent wrote.")
integrity = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Find records that were altered.")
Agent = Annotated[str, typer.Argument(help="Name of the agent that wrote.")]
Since = Annotated[str | None, typer.Option(help="Only what it wrote since then: a time, or such as '2 days ago'.")]


@quarantine.command()
def add(
    agent: Agent, since: Since = None, namespace: Namespace = None, config: Config = None, data_dir: DataDir = None
) -> None:
    """Hide from all others, at once, what an agent wrote and will write."""
    from memory_server.usecases import quarantine as use_case

    settings, start = _settings(config, data_dir, namespace), _since(since)

    async def act(service: Service) -> int:
        await use_case.quarantine(service.backend, settings.namespace, agent, start)
        return await use_case.count_written(service, settings.namespace, agent, start)

    number = _with_service(settings, act)
    typer.echo(f"Nobody but {agent} sees the {number} memories of {settings.namespace} that it wrote.")


@quarantine.command()
def remove(agent: Agent, namespace: Namespace = None, config: Config = None, data_dir: DataDir = None) -> None:
    """Show again what an agent wrote."""
    from memory_server.usecases.quarantine import lift

    settings = _settings(config, data_dir, namespace)
    _with_service(settings, lambda service: lift(service.backend, settings.namespace, agent))
    typer.echo(f"What {agent} wrote in {settings.namespace} is shown again.")


@quarantine.command("list")
def show(namespace: Namespace = None, config: Config = None, data_dir: DataDir = None) -> None:
    """List the agents under quarantine, and since when what they wrote is hidden."""
    from memory_core.times import to_iso
    from memory_server.usecases.quarantine import quarantined

    settings = _settings(config, data_dir, namespace)
    for one in _with_service(settings, lambda service: quarantined(service.backend, settings.namespace)):
        typer.echo(f"{one.agent}  {f'since {to_iso(one.since)}' if one.since else 'all'}")


def purge(
    agent: Agent,
    since: Since = None,
    confirm: Annotated[bool, typer.Option("--confirm", help="Do it; without, only count.")] = False,
    namespace: Namespace = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Remove for good what an agent wrote. Stopped midway, call it again."""
    from memory_server.usecases import quarantine as use_case

    settings, start = _settings(config, data_dir, namespace), _since(since)
    if not confirm:
        number = _with_service(
            settings, lambda service: use_case.count_written(service, settings.namespace, agent, start)
        )
        raise ConfirmationNeeded(f"this would delete {number} memories for good", hint="add --confirm")
    number = _with_service(settings, lambda service: use_case.purge(service, settings.namespace, agent, start))
    typer.echo(f"{number} memories that {agent} wrote in {settings.namespace} are deleted.")


@integrity.command()
def verify(namespace: Namespace = None, config: Config = None, data_dir: DataDir = None) -> None:
    """Check all records and report in JSON; exit code 1 if any is not as it was written."""
    from memory_server.usecases.proving import verify as use_case

    settings = _settings(config, data_dir, namespace)
    report = _with_service(settings, lambda service: use_case(service, settings.namespace))
    _report(report)
    if not report.healthy:
        raise typer.Exit(1)


@integrity.command()
def adopt(namespace: Namespace = None, config: Config = None, data_dir: DataDir = None) -> None:
    """Sign the records that were written before there was a key, as they are now; never those with a wrong code."""
    from memory_server.usecases.proving import adopt as use_case

    settings = _settings(config, data_dir, namespace)
    _report(_with_service(settings, lambda service: use_case(service, settings.namespace)))


def _report(report: Report) -> None:
    typer.echo(json.dumps(asdict(report) | {"healthy": report.healthy}, indent=2))


def _since(text: str | None) -> float:
    from memory_core.times import parse_time

    return 0.0 if text is None else parse_time(text, "since")


def _settings(config: Config, data_dir: DataDir, namespace: Namespace) -> Settings:
    from memory_core.settings import Settings

    return Settings.load(config, data_dir=data_dir, namespace=namespace)


def _with_service(settings: Settings, action: Callable[[Service], Awaitable[T]]) -> T:
    return asyncio.run(_connected(settings, action))


async def _connected(settings: Settings, action: Callable[[Service], Awaitable[T]]) -> T:
    """Run an action on Redis; its refusal is raised outside the task group, which would wrap it."""
    from memory_server.service import Service

    refused: MemoryServiceError
    service = Service(settings)
    async with service.backend.running():
        try:
            await service.backend.client()
            return await action(service)
        except MemoryServiceError as error:
            refused = error
    raise refused
