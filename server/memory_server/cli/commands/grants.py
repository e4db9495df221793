"""`redis-memory grants`: lists and revokes grants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memory_server.cli import lazy
from memory_server.cli.console import Console, common_options, group
from memory_server.contract.untrusted_text import counted

if TYPE_CHECKING:
    from memory_server.contract.sharing import GrantState

grants = group("grants", "List and revoke grants.")


@grants.command("list")
@common_options()
def list_grants(
    console: Console,
    agent: Annotated[str | None, typer.Option(help="Only grants from or to this agent.")] = None,
    ended: Annotated[bool, typer.Option("--all", help="Include grants that ended in the last 30 days.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Maximum number of grants.")] = 100,
) -> None:
    """List active grants and open offers, newest first."""
    answer = console.as_operator(
        "list_grants",
        lambda service, request: lazy.admin_view.all_grants(
            service.backend, request.caller, agent=agent and console.agent_name(agent), ended=ended, limit=limit
        ),
    )
    rows = (
        (g.id, g.state, g.from_agent, g.to_agent, g.permission, g.expires_at or "", _covers(g)) for g in answer.grants
    )
    columns = ("grant", "state", "from", "to", "permission", "until", "covers")
    console.show_answer(answer, lambda: lazy.printing.table(columns, rows))


@grants.command()
@common_options()
def revoke(console: Console, grant_id: Annotated[str, typer.Argument(help="Id of the grant, from `list`.")]) -> None:
    """Revoke a grant or an offer immediately, with all grants derived from it."""
    answer = console.as_operator(
        "revoke_shared_context",
        lambda service, request: lazy.grants.revoke_shared(service, request, grant_id),
        grant_id,
    )
    console.show_answer(answer, answer.text())


def _covers(grant: GrantState) -> str:
    filters = grant.context or ", ".join([*grant.tags, *grant.memory_types])
    return filters or f"{counted(grant.memories or 0, 'memory')}{' to take over' if grant.transfer else ''}"
