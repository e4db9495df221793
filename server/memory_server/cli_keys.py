"""`redis-memory keys`: makes and changes the keys of sensitive memories, from a shell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from memory_core.errors import KeyMissing, MemoryServiceError
from memory_server.cli_agents import Config, DataDir, Namespace, load_settings

if TYPE_CHECKING:
    from memory_core.settings import Settings
    from memory_server.service import Service

T = TypeVar("T")
keys = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Make keys, and change them.")


@keys.command()
def new() -> None:
    """Print a new master key, for MEMORY_MASTER_KEY or a file; nobody can make it again."""
    from memory_core.keyring import new_key

    typer.echo(new_key())


@keys.command()
def transport(config: Config = None) -> None:
    """Print the transport key, all that a sidecar needs of the keys: for its MEMORY_TRANSPORT_KEY."""
    from memory_core.keyring import HOW_TO_SET, load_keyring, written

    transports = load_keyring(load_settings(config, None, None)).transports
    if not transports:
        raise KeyMissing("there is no master key to derive it from", hint=HOW_TO_SET)
    typer.echo(written(transports[0]))


@keys.command()
def rotate(
    agent: Annotated[str | None, typer.Option(help="Of this agent alone; of all if left out.")] = None,
    namespace: Namespace = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Give agents new data keys and seal their memories anew. If it was stopped, run it again: it goes on."""
    settings = load_settings(config, data_dir, namespace)
    closed = _with_service(settings, lambda service: _rotate(service, settings.namespace, agent))
    if closed:
        typer.echo(f"{closed} memories cannot be opened; their old keys are kept.", err=True)
        raise typer.Exit(1)


@keys.command()
def rewrap(
    namespace: Annotated[str | None, typer.Option(help="Of this namespace alone; of all if left out.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Put all data keys under the first master key; the older ones open no memory any more after that."""
    settings = load_settings(config, data_dir, namespace)
    number = _with_service(settings, lambda service: _rewrap(service, namespace))
    typer.echo(f"{number} data keys were put under the master key in force.")


async def _rotate(service: Service, namespace: str, agent: str | None) -> int:
    from memory_server.usecases.rotation import owners_with_keys
    from memory_server.usecases.rotation import rotate as rotate_one

    closed = 0
    for owner in await owners_with_keys(service, namespace, agent):
        rotated = await rotate_one(service, namespace, owner)
        closed += rotated.closed
        typer.echo(f"{owner}: {rotated.resealed} memories are sealed anew.")
    return closed


async def _rewrap(service: Service, namespace: str | None) -> int:
    from memory_server.usecases.rotation import namespaces, owners_with_keys
    from memory_server.usecases.rotation import rewrap as rewrap_one

    number = 0
    for name in [namespace] if namespace else await namespaces(service):
        for owner in await owners_with_keys(service, name):
            number += await rewrap_one(service, name, owner)
    return number


def _with_service(settings: Settings, action: Callable[[Service], Awaitable[T]]) -> T:
    return asyncio.run(_running(settings, action))


async def _running(settings: Settings, action: Callable[[Service], Awaitable[T]]) -> T:
    """Run an action, which needs none of the background work but Redis.

    Its refusal is raised outside the task group, which would wrap it.
    """
    from memory_server.service import Service

    refused: MemoryServiceError
    service = Service(settings)
    async with service.backend.running():
        try:
            await service.vault.check()
            return await action(service)
        except MemoryServiceError as error:
            refused = error
    raise refused
