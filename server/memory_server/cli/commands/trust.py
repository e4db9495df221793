"""`redis-memory quarantine | purge | integrity`: hides or deletes untrusted memories, and finds altered records."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from memory_core.errors import ConfirmationNeeded
from memory_core.records.times import parse_time, to_iso
from memory_server.cli import lazy
from memory_server.cli.console import CHECK_FAILED, Console, common_options, group
from memory_server.contract.untrusted_text import counted

if TYPE_CHECKING:
    from memory_server.operations.verify_integrity import IntegritySummary
    from memory_server.service import Service

quarantine = group("quarantine", "Hide what an agent wrote.")
integrity = group("integrity", "Find altered records.")
Agent = Annotated[str, typer.Argument(help="Name of the writing agent.")]
Since = Annotated[str | None, typer.Option(help="Only what it wrote since this time, such as '2 days ago'.")]


@quarantine.command()
@common_options()
def add(console: Console, agent: Agent, since: Since = None) -> None:
    """Hide everything that an agent wrote and will write from all other agents, immediately."""
    agent, namespace, start = console.agent_name(agent), console.namespace, _since(since)

    async def act(service: Service) -> int:
        await lazy.quarantine.quarantine(service.backend, namespace, agent, start)
        return await lazy.quarantine.count_written(service, namespace, agent, start)

    number = console.with_service(act)
    console.show(
        {"agent": agent, "namespace": namespace, "hidden": number},
        f"{counted(number, 'memory')} that {agent} wrote in {namespace} {'is' if number == 1 else 'are'} "
        "hidden from all other agents.",
    )


@quarantine.command()
@common_options()
def remove(console: Console, agent: Agent) -> None:
    """Show an agent's memories again."""
    agent, namespace = console.agent_name(agent), console.namespace
    console.with_service(lambda service: lazy.quarantine.lift(service.backend, namespace, agent))
    console.show({"agent": agent, "namespace": namespace}, f"The memories of {agent} in {namespace} are visible again.")


@quarantine.command("list")
@common_options()
def list_quarantined(console: Console) -> None:
    """List the agents in quarantine and the time since when their memories are hidden."""
    namespace = console.namespace
    found = console.with_service(lambda service: lazy.quarantine.quarantined(service.backend, namespace))

    def show() -> None:
        for one in found:
            lazy.printing.line(f"{one.agent}  {f'since {to_iso(one.since)}' if one.since else 'all'}")

    console.show([{"agent": one.agent, "since": to_iso(one.since or None)} for one in found], show)


@common_options()
def purge(
    console: Console,
    agent: Agent,
    since: Since = None,
    confirm: Annotated[bool, typer.Option("--confirm", help="Delete; without it, only count.")] = False,
) -> None:
    """Delete everything that an agent wrote, permanently. Run it again to resume after an interruption."""
    agent, namespace, start = console.agent_name(agent), console.namespace, _since(since)
    if not confirm:
        console.only_reads()
    act = lazy.quarantine.purge if confirm else lazy.quarantine.count_written
    number = console.with_service(lambda service: act(service, namespace, agent, start))
    if not confirm:
        raise ConfirmationNeeded(f"this would permanently delete {counted(number, 'memory')}", hint="add --confirm")
    are = "is" if number == 1 else "are"
    console.show(
        {"agent": agent, "namespace": namespace, "deleted": number},
        f"{counted(number, 'memory')} that {agent} wrote in {namespace} {are} deleted.",
    )


@integrity.command()
@common_options()
def verify(console: Console) -> None:
    """Verify all memories and authorisation records, and report in JSON. Exits with 1 if one was altered."""
    namespace = console.namespace
    report = console.with_service(lambda service: lazy.integrity.verify(service.backend, namespace))
    _print_report(report)
    if not report.healthy:
        raise typer.Exit(CHECK_FAILED)


@integrity.command()
@common_options()
def adopt(console: Console) -> None:
    """Sign the records that were written without a key or by a release that did not sign them, and report in JSON.

    Never signs records with a wrong code.
    """
    namespace = console.namespace
    _print_report(console.with_service(lambda service: lazy.integrity.adopt(service, namespace)))


def _print_report(report: IntegritySummary) -> None:
    lazy.printing.emit(asdict(report) | {"healthy": report.healthy})


def _since(text: str | None) -> float:
    return 0.0 if text is None else parse_time(text, "since")
