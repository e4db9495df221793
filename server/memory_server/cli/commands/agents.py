"""`redis-memory agents`: who is there, and who may call, kept from a shell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory_core.errors import InvalidArgument, echo
from memory_server.cli.console import (
    AsJson,
    Config,
    DataDir,
    Namespace,
    carry_out,
    load_settings,
    operator,
    with_backend,
)

if TYPE_CHECKING:
    from memory_core.records.token import Token

agents = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="See who is there; give agents tokens, and take them."
)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@agents.command("list")
def listing(
    alive: Annotated[bool, typer.Option("--alive", help="Only those that live.")] = False,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """List the registered agents: whether they live, what they can do and have in hand."""
    from memory_server.agents.registry import list_agents
    from memory_server.cli import printing
    from memory_server.contract.task_arguments import ListAgentsArguments

    settings = load_settings(config, data_dir, namespace)
    caller = operator(settings.namespace)

    answer = carry_out(
        settings,
        caller,
        "list_agents",
        lambda service, _: list_agents(service, caller, ListAgentsArguments(alive_only=alive)),
    )
    if as_json:
        return printing.emit_answer(answer)
    rows = (
        (a.agent_id, a.agent_type, a.status, in_hand, a.completed, a.failed, a.last_seen, ", ".join(a.capabilities))
        for a in answer.agents
        for in_hand in [f"{a.open_tasks}/{a.max_tasks}"]
    )
    printing.table(("agent", "type", "status", "tasks", "done", "failed", "last seen", "can"), rows)
    return None


@agents.command()
def token(
    agent: Annotated[str, typer.Argument(help="Name of the agent.")],
    namespace: Namespace = None,
    scope: Annotated[str, typer.Option(help="Of read, write, tasks and admin, with commas.")] = "read,write,tasks",
    expires: Annotated[str, typer.Option(help="Lifetime: a number and s, m, h, d or w.")] = "90d",
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Issue a token and print it; nobody can read it again."""
    from memory_core.records.access import check_scopes
    from memory_core.records.times import to_iso
    from memory_server.access.tokens import issue_token
    from memory_server.cli import printing

    settings = load_settings(config, data_dir, namespace)
    scopes = check_scopes(part.strip() for part in scope.split(",") if part.strip())
    seconds = _seconds(expires)
    issued, text = with_backend(
        settings,
        lambda backend: issue_token(backend, agent=agent, namespace=settings.namespace, scopes=scopes, seconds=seconds),
    )
    if as_json:
        return printing.emit(_shown(issued) | {"token": text})
    until = to_iso(round(issued.expires_at))
    typer.echo(
        f"Token {issued.id} of {agent} in {issued.namespace}: {' '.join(sorted(scopes))}, until {until}.", err=True
    )
    typer.echo(text)
    return None


@agents.command()
def tokens(
    namespace: Namespace = None, as_json: AsJson = False, config: Config = None, data_dir: DataDir = None
) -> None:
    """List the tokens of a namespace that have not expired."""
    from memory_core.records.times import to_iso
    from memory_server.access.tokens import list_tokens
    from memory_server.cli import printing

    settings = load_settings(config, data_dir, namespace)
    found = with_backend(settings, lambda backend: list_tokens(backend, settings.namespace))
    if as_json:
        return printing.emit([_shown(one) for one in found])
    for one in found:
        state = "revoked" if one.revoked else f"until {to_iso(round(one.expires_at))}"
        typer.echo(f"{one.id}  {one.agent}  {','.join(sorted(one.scopes))}  {state}")
    return None


@agents.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="Id of the token, as `tokens` lists it.")],
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """End a token at once."""
    from memory_server.access.tokens import revoke_token
    from memory_server.cli import printing

    revoked = with_backend(load_settings(config, data_dir, None), lambda backend: revoke_token(backend, token_id))
    if as_json:
        printing.emit(_shown(revoked))
    else:
        typer.echo(f"Token {revoked.id} of {revoked.agent} in {revoked.namespace} is revoked.")


def _shown(token: Token) -> dict[str, Any]:
    """Give what may be told of a token; never its secret."""
    from memory_core.records.times import to_iso

    return {
        "id": token.id,
        "agent": token.agent,
        "namespace": token.namespace,
        "scopes": sorted(token.scopes),
        "expires_at": to_iso(round(token.expires_at)),
        "revoked": token.revoked,
    }


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip(), re.ASCII)
    if found is None:
        raise InvalidArgument(f"{echo(text)} is not a lifetime", hint="a number and s, m, h, d or w, such as 90d")
    return float(found[1]) * _UNITS[found[2]]
