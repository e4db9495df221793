"""`redis-memory search | show`: searches and reads memories with an agent's permission."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memory_core.errors import InvalidArgument
from memory_server.cli import lazy
from memory_server.cli.console import Console, common_options
from memory_server.contract.untrusted_text import decimal

if TYPE_CHECKING:
    from memory_server.contract.memories import MemoryAnswer, SearchAnswer

Agent = Annotated[str | None, typer.Option(help="Agent whose permission applies; MEMORY_AGENT if omitted.")]
Mode = Literal["hybrid", "vector", "keyword"]


@common_options()
def search(
    console: Console,
    query: Annotated[str, typer.Argument(help="Text to search for.")],
    agent: Agent = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="Maximum number of memories.")] = 10,
    mode: Annotated[Mode, typer.Option(help="Search by meaning and words, or by one of them.")] = "hybrid",
    min_score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Minimum score.")] = 0.0,
    tag: Annotated[list[str] | None, typer.Option(help="Only with this tag; repeatable.")] = None,
    context: Annotated[str | None, typer.Option(help="Only in this session, thread or project.")] = None,
    since: Annotated[str | None, typer.Option(help="Only since this time, such as '2 days ago'.")] = None,
    until: Annotated[str | None, typer.Option(help="Only until this time.")] = None,
    archive: Annotated[bool, typer.Option("--archive", help="Include the archive.")] = False,
) -> None:
    """Search memories like an agent does, with that agent's permission."""
    arguments = lazy.arguments.SearchArguments(
        query=query,
        mode=mode,
        limit=limit,
        min_score=min_score,
        tags=tag,
        context=context,
        since=since,
        until=until,
        include_archive=archive,
    )
    answer = console.as_agent(
        _agent(console, agent),
        "semantic_search",
        lambda service, request: lazy.search.semantic_search(service, request, arguments),
    )
    console.show_answer(answer, lambda: _print_hits(answer))


@common_options()
def show(
    console: Console,
    memory_id: Annotated[str, typer.Argument(help="Id of the memory, from `search`.")],
    agent: Agent = None,
) -> None:
    """Show one memory in full, if the agent may read it."""
    arguments = lazy.arguments.RetrieveArguments(memory_id=memory_id, max_tokens=0)
    answer = console.as_agent(
        _agent(console, agent),
        "retrieve_memory",
        lambda service, request: lazy.read.retrieve_memory(service, request, arguments),
        memory_id,
    )
    console.show_answer(answer, lambda: _print_memory(answer))


def _agent(console: Console, agent: str | None) -> str:
    name = agent or console.settings.agent
    if name is None:
        raise InvalidArgument("no agent is given", hint="give --agent NAME, or set MEMORY_AGENT")
    return name


def _print_hits(answer: SearchAnswer) -> None:
    rows = (
        (
            decimal(hit.score),
            found.memory_id,
            found.writer,
            found.access(),
            (found.occurred_at or "")[:19],
            found.content,
        )
        for hit in answer.hits
        for found in [hit.memory]
    )
    if answer.hits:
        lazy.printing.table(("score", "memory", "by", "access", "time", "content"), rows)
    else:
        lazy.printing.line("No memories found.")
    if answer.partial:
        lazy.printing.line(f"partial: {answer.reason}", err=True)


def _print_memory(answer: MemoryAnswer) -> None:
    fields = answer.memory.model_dump(mode="json", exclude_none=True)
    content = fields.pop("content")
    fields |= {"access_count": answer.access_count, "last_access": answer.last_access}
    lazy.printing.pairs(
        (name, ", ".join(value) if isinstance(value, list) else value) for name, value in fields.items()
    )
    lazy.printing.line("")
    lazy.printing.untrusted(content)
