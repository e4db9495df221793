"""`redis-memory keys`: makes and changes the keys of sensitive memories, from a shell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from memory_core.errors import KeyMissing
from memory_server.cli.console import AsJson, Config, DataDir, Namespace, load_settings, with_service

if TYPE_CHECKING:
    from memory_server.service import Service

keys = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Make keys, and change them.")


@keys.command()
def new(as_json: AsJson = False) -> None:
    """Print a new master key, for MEMORY_MASTER_KEY or a file; nobody can make it again."""
    from memory_core.crypto.keyring import new_key

    _say("key", new_key(), as_json)


@keys.command()
def transport(as_json: AsJson = False, config: Config = None) -> None:
    """Print the transport key, all that a sidecar needs of the keys: for its MEMORY_TRANSPORT_KEY."""
    from memory_core.crypto.keyring import HOW_TO_SET, load_keyring, written

    transports = load_keyring(load_settings(config, None, None)).transports
    if not transports:
        raise KeyMissing("there is no master key to derive it from", hint=HOW_TO_SET)
    _say("key", written(transports[0]), as_json)


@keys.command()
def rotate(
    agent: Annotated[str | None, typer.Option(help="Of this agent alone; of all if left out.")] = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Give agents new data keys and seal their memories anew. If it was stopped, run it again: it goes on."""
    from memory_server.cli import printing

    settings = load_settings(config, data_dir, namespace)
    resealed: dict[str, int] = {}

    def tell(owner: str, number: int) -> None:
        resealed[owner] = number
        if not as_json:
            typer.echo(f"{owner}: {number} memories are sealed anew.")

    closed = with_service(settings, lambda service: _rotate(service, settings.namespace, agent, tell))
    if as_json:
        printing.emit({"resealed": resealed, "closed": closed})
    if closed:
        typer.echo(f"{closed} memories cannot be opened; their old keys are kept.", err=True)
        raise typer.Exit(1)


@keys.command()
def rewrap(
    namespace: Annotated[str | None, typer.Option(help="Of this namespace alone; of all if left out.")] = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Put all data keys under the first master key; the older ones open no memory any more after that."""
    settings = load_settings(config, data_dir, namespace)
    number = with_service(settings, lambda service: _rewrap(service, namespace))
    _say("rewrapped", number, as_json, "{} data keys were put under the master key in force.")


async def _rotate(service: Service, namespace: str, agent: str | None, tell: Callable[[str, int], None]) -> int:
    from memory_server.operations.key_rotation import owners_with_keys
    from memory_server.operations.key_rotation import rotate as rotate_one

    await service.vault.check()
    closed = 0
    for owner in await owners_with_keys(service.backend, namespace, agent):
        rotated = await rotate_one(service, namespace, owner)
        closed += rotated.closed
        tell(owner, rotated.resealed)
    return closed


async def _rewrap(service: Service, namespace: str | None) -> int:
    from memory_server.operations.key_rotation import owners_with_keys
    from memory_server.operations.key_rotation import rewrap as rewrap_one

    await service.vault.check()
    number = 0
    for name in [namespace] if namespace else await service.namespaces.names():
        for owner in await owners_with_keys(service.backend, name):
            number += await rewrap_one(service.backend, name, owner)
    return number


def _say(name: str, value: object, as_json: bool, words: str = "{}") -> None:
    from memory_server.cli import printing

    if as_json:
        printing.emit({name: value})
    else:
        typer.echo(words.format(value))
