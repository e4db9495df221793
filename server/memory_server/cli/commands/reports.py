"""`redis-memory duplicates | clusters`: reports on an agent's own memories."""

from __future__ import annotations

from typing import Annotated

import typer

from memory_server.cli import lazy
from memory_server.cli.console import Console, common_options
from memory_server.contract.untrusted_text import counted

_WAIT_SECONDS = 300.0
Agent = Annotated[str, typer.Argument(help="Name of the agent whose memories to compare.")]


@common_options()
def duplicates(
    console: Console,
    agent: Agent,
    least: Annotated[float, typer.Option(help="Minimum cosine similarity, .5 to 1.")] = 0.95,
) -> None:
    """Show near-duplicates among an agent's memories."""
    answer = console.as_agent(
        agent,
        "duplicates",
        lambda service, request: lazy.reports.near_duplicates(service, request, least=least, wait=_WAIT_SECONDS),
    )

    def show() -> None:
        rows = [
            (f"{group.cosine:.3f}", one.memory_id, one.content) for group in answer.groups for one in group.memories
        ]
        lazy.printing.table(("cosine", "memory", "content"), rows)
        left_out = answer.pairs_left_out
        lazy.printing.line(
            f"{counted(len(answer.groups), 'group')}." + (f" {left_out} more pairs were left out." if left_out else "")
        )

    console.show_answer(answer, show)


@common_options()
def clusters(
    console: Console,
    agent: Agent,
    count: Annotated[int, typer.Option(min=1, max=256, help="Number of clusters.")] = 16,
    show: Annotated[int, typer.Option(min=1, max=100, help="Examples per cluster.")] = 3,
) -> None:
    """Cluster an agent's memories by meaning."""
    answer = console.as_agent(
        agent,
        "clusters",
        lambda service, request: lazy.reports.clusters(service, request, count=count, show=show, wait=_WAIT_SECONDS),
    )
    rows = [
        (one.size, f"{one.closeness:.2f}", text.memory_id, text.content)
        for one in answer.clusters
        for text in one.examples
    ]
    columns = ("memories", "closeness", "example", "content")
    console.show_answer(answer, lambda: lazy.printing.table(columns, rows))
