"""`redis-memory duplicates | clusters`: an agent's own memories at a glance, from a shell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from memory_server.cli.console import AsJson, Config, DataDir, Namespace, acting_as, carry_out, load_settings

if TYPE_CHECKING:
    from memory_core.settings.settings import Settings
    from memory_server.contract.answer import Answer
    from memory_server.engine.request import RequestContext
    from memory_server.service import Service

    A = TypeVar("A", bound=Answer)

_WAIT_SECONDS = 300.0
Agent = Annotated[str, typer.Argument(help="Name of the agent whose own memories are looked at.")]


def duplicates(
    agent: Agent,
    least: Annotated[float, typer.Option(help="Cosine from which two say nearly the same, .5 to 1.")] = 0.95,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Show which of an agent's memories say nearly the same."""
    from memory_server.cli import printing
    from memory_server.search.reports import near_duplicates

    found = _report(
        load_settings(config, data_dir, namespace),
        agent,
        "duplicates",
        lambda service, request: near_duplicates(service, request, least=least, wait=_WAIT_SECONDS),
    )
    if as_json:
        return printing.emit_answer(found)
    rows = [(f"{group.cosine:.3f}", one.memory_id, one.content) for group in found.groups for one in group.memories]
    printing.table(("cosine", "memory", "content"), rows)
    left = found.pairs_left_out
    typer.echo(f"{len(found.groups)} groups." + (f" {left} less alike pairs were left out." if left else ""))
    return None


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
    from memory_server.cli import printing
    from memory_server.search import reports

    found = _report(
        load_settings(config, data_dir, namespace),
        agent,
        "clusters",
        lambda service, request: reports.clusters(service, request, count=count, show=show, wait=_WAIT_SECONDS),
    )
    if as_json:
        return printing.emit_answer(found)
    rows = [
        (one.size, f"{one.closeness:.2f}", text.memory_id, text.content)
        for one in found.clusters
        for text in one.examples
    ]
    printing.table(("memories", "closeness", "such as", "content"), rows)
    return None


def _report(settings: Settings, agent: str, op: str, make: Callable[[Service, RequestContext], Awaitable[A]]) -> A:
    """Make a report as the agent, with its permission; it is audited as a tool's call is."""
    caller = acting_as(settings.namespace, agent)
    return carry_out(settings, caller, op, make)
