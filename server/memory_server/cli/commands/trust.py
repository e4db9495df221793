"""`redis-memory quarantine | purge | integrity`: what to do about memories that are not to be trusted."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from memory_core.errors import ConfirmationNeeded
from memory_server.cli.console import AsJson, Config, DataDir, Namespace, load_settings, with_service

if TYPE_CHECKING:
    from memory_server.operations.verify_integrity import Report
    from memory_server.service import Service

quarantine = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Hide what an agent wrote.")
integrity = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Find records that were altered.")
Agent = Annotated[str, typer.Argument(help="Name of the agent that wrote.")]
AlwaysJson = Annotated[bool, typer.Option("--json", help="It always answers in JSON.")]
Since = Annotated[str | None, typer.Option(help="Only what it wrote since then: a time, or such as '2 days ago'.")]


@quarantine.command()
def add(
    agent: Agent,
    since: Since = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Hide from all others, at once, what an agent wrote and will write."""
    from memory_server.operations import quarantine as use_case

    settings, start = load_settings(config, data_dir, namespace), _since(since)

    async def act(service: Service) -> int:
        await use_case.quarantine(service.backend, settings.namespace, agent, start)
        return await use_case.count_written(service, settings.namespace, agent, start)

    number = with_service(settings, act)
    hidden = f"Nobody but {agent} sees the {number} memories of {settings.namespace} that it wrote."
    _say(as_json, hidden, agent=agent, namespace=settings.namespace, hidden=number)


@quarantine.command()
def remove(
    agent: Agent, namespace: Namespace = None, as_json: AsJson = False, config: Config = None, data_dir: DataDir = None
) -> None:
    """Show again what an agent wrote."""
    from memory_server.operations.quarantine import lift

    settings = load_settings(config, data_dir, namespace)
    with_service(settings, lambda service: lift(service.backend, settings.namespace, agent))
    shown = f"What {agent} wrote in {settings.namespace} is shown again."
    _say(as_json, shown, agent=agent, namespace=settings.namespace)


@quarantine.command("list")
def show(namespace: Namespace = None, as_json: AsJson = False, config: Config = None, data_dir: DataDir = None) -> None:
    """List the agents under quarantine, and since when what they wrote is hidden."""
    from memory_core.records.times import to_iso
    from memory_server.operations.quarantine import quarantined

    settings = load_settings(config, data_dir, namespace)
    found = with_service(settings, lambda service: quarantined(service.backend, settings.namespace))
    if as_json:
        typer.echo(json.dumps([{"agent": one.agent, "since": to_iso(one.since or None)} for one in found], indent=2))
        return
    for one in found:
        typer.echo(f"{one.agent}  {f'since {to_iso(one.since)}' if one.since else 'all'}")


def purge(
    agent: Agent,
    since: Since = None,
    confirm: Annotated[bool, typer.Option("--confirm", help="Do it; without, only count.")] = False,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Remove for good what an agent wrote. Stopped midway, call it again."""
    from memory_server.operations import quarantine as use_case

    settings, start = load_settings(config, data_dir, namespace), _since(since)
    if not confirm:
        number = with_service(
            settings, lambda service: use_case.count_written(service, settings.namespace, agent, start)
        )
        raise ConfirmationNeeded(f"this would delete {number} memories for good", hint="add --confirm")
    number = with_service(settings, lambda service: use_case.purge(service, settings.namespace, agent, start))
    gone = f"{number} memories that {agent} wrote in {settings.namespace} are deleted."
    _say(as_json, gone, agent=agent, namespace=settings.namespace, deleted=number)


@integrity.command()
def verify(
    namespace: Namespace = None, as_json: AlwaysJson = True, config: Config = None, data_dir: DataDir = None
) -> None:
    """Check all records and report in JSON; exit code 1 if any is not as it was written."""
    from memory_server.operations.verify_integrity import verify as use_case

    settings = load_settings(config, data_dir, namespace)
    report = with_service(settings, lambda service: use_case(service.backend, settings.namespace))
    _report(report)
    if not report.healthy:
        raise typer.Exit(1)


@integrity.command()
def adopt(
    namespace: Namespace = None, as_json: AlwaysJson = True, config: Config = None, data_dir: DataDir = None
) -> None:
    """Sign the records that were written before there was a key, as they are now; never those with a wrong code."""
    from memory_server.operations.verify_integrity import adopt as use_case

    settings = load_settings(config, data_dir, namespace)
    _report(with_service(settings, lambda service: use_case(service, settings.namespace)))


def _report(report: Report) -> None:
    typer.echo(json.dumps(asdict(report) | {"healthy": report.healthy}, indent=2))


def _say(as_json: bool, words: str, **fields: object) -> None:
    typer.echo(json.dumps(fields, indent=2) if as_json else words)


def _since(text: str | None) -> float:
    from memory_core.records.times import parse_time

    return 0.0 if text is None else parse_time(text, "since")
