"""`redis-memory agents`: lists agents, issues and revokes their tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory_core.errors import InvalidArgument, echo
from memory_core.records.access import check_scopes
from memory_core.records.times import to_iso
from memory_server.cli import lazy
from memory_server.cli.console import Console, common_options, group

if TYPE_CHECKING:
    from memory_core.records.token import Token

agents = group("agents", "List agents; issue and revoke their tokens.")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@agents.command("list")
@common_options()
def list_agents(
    console: Console, alive: Annotated[bool, typer.Option("--alive", help="Only live agents.")] = False
) -> None:
    """List registered agents with their status, capabilities and tasks."""
    answer = console.as_operator(
        "list_agents",
        lambda service, request: lazy.agents.list_agents(
            service, request.caller, lazy.task_arguments.ListAgentsArguments(alive_only=alive), most=0
        ),
    )
    rows = (
        (a.agent_id, a.agent_type, a.status, open_tasks, a.completed, a.failed, a.last_seen, ", ".join(a.capabilities))
        for a in answer.agents
        for open_tasks in [f"{a.open_tasks}/{a.max_tasks}"]
    )
    columns = ("agent", "type", "status", "tasks", "completed", "failed", "last seen", "capabilities")
    console.show_answer(answer, lambda: lazy.printing.table(columns, rows))


@agents.command()
@common_options()
def token(
    console: Console,
    agent: Annotated[str, typer.Argument(help="Name of the agent.")],
    scope: Annotated[str, typer.Option(help="Comma-separated: read, write, tasks, admin.")] = "read,write,tasks",
    expires: Annotated[str, typer.Option(help="Lifetime: a number and s, m, h, d or w.")] = "90d",
) -> None:
    """Issue a token and print it. It cannot be shown again."""
    scopes = check_scopes(part.strip() for part in scope.split(",") if part.strip())
    namespace, seconds = console.namespace, _seconds(expires)
    issued, text = console.with_backend(
        lambda backend: lazy.tokens.issue_token(
            backend, agent=agent, namespace=namespace, scopes=scopes, seconds=seconds
        )
    )

    def show() -> None:
        until = to_iso(round(issued.expires_at))
        about = f"Token {issued.id} of {agent} in {issued.namespace}: {' '.join(sorted(scopes))}, until {until}."
        lazy.printing.line(about, err=True)
        lazy.printing.line(text)

    console.show(_public(issued) | {"token": text}, show)


@agents.command()
@common_options()
def tokens(console: Console) -> None:
    """List the unexpired tokens of a namespace."""
    namespace = console.namespace
    found = console.with_backend(lambda backend: lazy.tokens.list_tokens(backend, namespace))

    def show() -> None:
        for one in found:
            state = "revoked" if one.revoked else f"until {to_iso(round(one.expires_at))}"
            lazy.printing.line(f"{one.id}  {one.agent}  {','.join(sorted(one.scopes))}  {state}")

    console.show([_public(one) for one in found], show)


@agents.command()
@common_options("as_json", "config", "data_dir")
def revoke(console: Console, token_id: Annotated[str, typer.Argument(help="Id of the token, from `tokens`.")]) -> None:
    """Revoke a token immediately."""
    revoked = console.with_backend(lambda backend: lazy.tokens.revoke_token(backend, token_id))
    console.show(_public(revoked), f"Token {revoked.id} of {revoked.agent} in {revoked.namespace} is revoked.")


@agents.command()
@common_options()
def transfer(
    console: Console,
    agent: Annotated[str, typer.Argument(help="Name of the agent that left.")],
    to: Annotated[str, typer.Option(help="Registered agent that shall have its memories.")],
) -> None:
    """Offer an agent the memories that another kept when it unregistered. It accepts with `answer_offer`."""
    agent, to = console.agent_name(agent), console.agent_name(to)
    answer = console.as_operator(
        "offer_kept",
        lambda service, request: lazy.kept_memories.offer_kept(service, request, agent, to),
        agent,
        to,
    )
    console.show_answer(answer, answer.text())


def _public(token: Token) -> dict[str, Any]:
    """Return the fields of a token without its secret."""
    return {
        "id": token.id,
        "agent": token.agent,
        "namespace": token.namespace,
        "scopes": sorted(token.scopes),
        "expires_at": to_iso(round(token.expires_at)),
        "revoked": token.revoked,
    }


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip(), re.ASCII)
    if match is None:
        raise InvalidArgument(f"{echo(text)} is not a lifetime", hint="a number and s, m, h, d or w, such as 90d")
    return float(match[1]) * _UNITS[match[2]]
