"""`redis-memory grants`: who lets whom see what, listed and ended from a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memory_server.cli.console import AsJson, Config, DataDir, Namespace, carry_out, load_settings, operator

if TYPE_CHECKING:
    from memory_server.contract.sharing import GrantState

grants = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Look at what is shared, and end it.")


@grants.command("list")
def listing(
    agent: Annotated[str | None, typer.Option(help="Only what this agent gave or was given.")] = None,
    every: Annotated[bool, typer.Option("--all", help="With those that ended in the last 30 days.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Most grants.")] = 100,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """List the grants in force and the offers that wait, newest first."""
    from memory_server.cli import printing
    from memory_server.operations.admin_view import all_grants

    settings = load_settings(config, data_dir, namespace)
    caller = operator(settings.namespace)

    answer = carry_out(
        settings,
        caller,
        "list_grants",
        lambda service, _: all_grants(service.backend, caller, agent=agent, ended=every, limit=limit),
    )
    if as_json:
        return printing.emit_answer(answer)
    rows = (
        (g.id, g.state, g.from_agent, g.to_agent, g.permission, g.expires_at or "", _covers(g)) for g in answer.grants
    )
    printing.table(("grant", "state", "from", "to", "may", "until", "covers"), rows)
    return None


@grants.command()
def revoke(
    grant_id: Annotated[str, typer.Argument(help="Id of the grant or offer, as `list` gives it.")],
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """End a grant or an offer at once, with all that was passed on under it."""
    from memory_server.cli import printing
    from memory_server.sharing.grants import revoke_shared

    settings = load_settings(config, data_dir, namespace)
    caller = operator(settings.namespace)

    answer = carry_out(
        settings,
        caller,
        "revoke_shared_context",
        lambda service, request: revoke_shared(service, request, grant_id),
        ids=[grant_id],
    )
    if as_json:
        printing.emit_answer(answer)
    else:
        typer.echo(answer.summary())


def _covers(grant: GrantState) -> str:
    what = grant.context or ", ".join([*grant.tags, *grant.memory_types])
    return what or f"{grant.memories} memories"
