"""`redis-memory agents`: who may call, kept from a shell."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from memory_core.errors import InvalidArgument, MemoryServiceError, echo

if TYPE_CHECKING:
    from memory_core.settings import Settings
    from memory_server.backend import Backend

T = TypeVar("T")
agents = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Give agents tokens, and take them.")

Config = Annotated[Path | None, typer.Option(help="JSON file with settings.")]
DataDir = Annotated[Path | None, typer.Option(help="Where the embedded Redis keeps its data.")]
Namespace = Annotated[str | None, typer.Option(help="Team or project; the settings' own if left out.")]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@agents.command()
def token(
    agent: Annotated[str, typer.Argument(help="Name of the agent.")],
    namespace: Namespace = None,
    scope: Annotated[str, typer.Option(help="Of read, write, tasks and admin, with commas.")] = "read,write,tasks",
    expires: Annotated[str, typer.Option(help="Lifetime: a number and s, m, h, d or w.")] = "90d",
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Issue a token and print it; nobody can read it again."""
    from memory_core.access import check_scopes
    from memory_core.times import to_iso
    from memory_server.usecases.tokens import issue_token

    settings = load_settings(config, data_dir, namespace)
    scopes = check_scopes(part.strip() for part in scope.split(",") if part.strip())
    seconds = _seconds(expires)
    issued, text = _with_backend(
        settings,
        lambda backend: issue_token(backend, agent=agent, namespace=settings.namespace, scopes=scopes, seconds=seconds),
    )
    until = to_iso(round(issued.expires_at))
    typer.echo(
        f"Token {issued.id} of {agent} in {issued.namespace}: {' '.join(sorted(scopes))}, until {until}.", err=True
    )
    typer.echo(text)


@agents.command()
def tokens(namespace: Namespace = None, config: Config = None, data_dir: DataDir = None) -> None:
    """List the tokens of a namespace that have not expired."""
    from memory_core.times import to_iso
    from memory_server.usecases.tokens import list_tokens

    settings = load_settings(config, data_dir, namespace)
    for one in _with_backend(settings, lambda backend: list_tokens(backend, settings.namespace)):
        state = "revoked" if one.revoked else f"until {to_iso(round(one.expires_at))}"
        typer.echo(f"{one.id}  {one.agent}  {','.join(sorted(one.scopes))}  {state}")


@agents.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="Id of the token, as `tokens` lists it.")],
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """End a token at once."""
    from memory_server.usecases.tokens import revoke_token

    revoked = _with_backend(load_settings(config, data_dir, None), lambda backend: revoke_token(backend, token_id))
    typer.echo(f"Token {revoked.id} of {revoked.agent} in {revoked.namespace} is revoked.")


def load_settings(config: Path | None, data_dir: Path | None, namespace: str | None) -> Settings:
    """Read the settings; options that are given win."""
    from memory_core.settings import Settings

    return Settings.load(config, data_dir=data_dir, namespace=namespace)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip(), re.ASCII)
    if found is None:
        raise InvalidArgument(f"{echo(text)} is not a lifetime", hint="a number and s, m, h, d or w, such as 90d")
    return float(found[1]) * _UNITS[found[2]]


def _with_backend(settings: Settings, action: Callable[[Backend], Awaitable[T]]) -> T:
    return asyncio.run(_connected(settings, action))


async def _connected(settings: Settings, action: Callable[[Backend], Awaitable[T]]) -> T:
    """Run an action on Redis; its refusal is raised outside the task group, which would wrap it."""
    from memory_server.backend import Backend

    refused: MemoryServiceError
    async with Backend(settings).running() as backend:
        try:
            return await action(backend)
        except MemoryServiceError as error:
            refused = error
    raise refused
