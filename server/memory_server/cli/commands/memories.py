"""`redis-memory search | show`: what an agent would find and read, seen from a shell with that agent's permission."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memory_core.errors import InvalidArgument
from memory_server.cli.console import AsJson, Config, DataDir, Namespace, acting_as, carry_out, load_settings

if TYPE_CHECKING:
    from memory_core.settings.settings import Settings
    from memory_server.contract.memories import MemoryAnswer, SearchAnswer

Agent = Annotated[str | None, typer.Option(help="Agent with whose permission to look; MEMORY_AGENT if left out.")]
Mode = Literal["hybrid", "vector", "keyword"]


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    agent: Agent = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="Most memories.")] = 10,
    mode: Annotated[Mode, typer.Option(help="By meaning and words, or by one of them.")] = "hybrid",
    min_score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Least score.")] = 0.0,
    tag: Annotated[list[str] | None, typer.Option(help="Only with this tag; may be repeated.")] = None,
    context: Annotated[str | None, typer.Option(help="Only of this session, thread or project.")] = None,
    since: Annotated[str | None, typer.Option(help="Only since then: a time, or such as '2 days ago'.")] = None,
    until: Annotated[str | None, typer.Option(help="Only until then.")] = None,
    archive: Annotated[bool, typer.Option("--archive", help="In the archive too.")] = False,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Search memories as an agent does, by the same search and with no more than that agent's permission."""
    from memory_server.contract.arguments import SearchArguments
    from memory_server.search import search as use_case

    settings = load_settings(config, data_dir, namespace)
    args = SearchArguments(
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
    caller = acting_as(settings.namespace, _agent(agent, settings))

    found = carry_out(
        settings,
        caller,
        "semantic_search",
        lambda service, request: use_case.semantic_search(service, request, args),
    )
    _print_hits(found, as_json)


def show(
    memory_id: Annotated[str, typer.Argument(help="Id of the memory, as `search` gives it.")],
    agent: Agent = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Show one memory whole, if the agent may read it."""
    from memory_server.memories.get import retrieve_memory

    settings = load_settings(config, data_dir, namespace)
    caller = acting_as(settings.namespace, _agent(agent, settings))

    _print_memory(
        carry_out(
            settings,
            caller,
            "retrieve_memory",
            lambda service, request: retrieve_memory(service, request, memory_id),
            ids=[memory_id],
        ),
        as_json,
    )


def _agent(agent: str | None, settings: Settings) -> str:
    """Name the agent.

    Raises:
        InvalidArgument: neither the option nor the settings do.
    """
    name = agent or settings.agent
    if name is None:
        raise InvalidArgument("as which agent?", hint="give --agent NAME, or set MEMORY_AGENT")
    return name


def _print_hits(answer: SearchAnswer, as_json: bool) -> None:
    from memory_server.cli import printing

    if as_json:
        return printing.emit_answer(answer)
    rows = (
        (f"{hit.score:.2f}", found.memory_id, found.writer, found.trust, (found.occurred_at or "")[:19], found.content)
        for hit in answer.hits
        for found in [hit.memory]
    )
    if answer.hits:
        printing.table(("score", "memory", "by", "trust", "when", "content"), rows)
    else:
        typer.echo("No memories found.")
    if answer.partial:
        typer.echo(f"partial: {answer.reason}", err=True)
    return None


def _print_memory(answer: MemoryAnswer, as_json: bool) -> None:
    from memory_server.cli import printing

    if as_json:
        return printing.emit_answer(answer)
    found = answer.memory.model_dump(mode="json", exclude_none=True)
    content = found.pop("content")
    found |= {"access_count": answer.access_count, "last_access": answer.last_access}
    printing.pairs((name, ", ".join(value) if isinstance(value, list) else value) for name, value in found.items())
    typer.echo("")
    typer.echo(printing.plain(content))
    return None
