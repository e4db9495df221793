"""`redis-memory keys`: creates and rotates the keys of sensitive memories."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from memory_core.crypto.keyring import HOW_TO_SET, load_keyring, new_key
from memory_core.errors import KeyMissing, Tampered
from memory_core.records.names import check_name
from memory_server.cli import lazy
from memory_server.cli.console import CHECK_FAILED, Console, common_options, group
from memory_server.contract.untrusted_text import counted

if TYPE_CHECKING:
    from memory_server.service import Service

keys = group("keys", "Create and rotate keys.")


@keys.command()
@common_options("as_json")
def new(console: Console) -> None:
    """Print a new master key, for MEMORY_MASTER_KEY or a file. It cannot be derived again."""
    key = new_key()
    console.show({"key": key}, key)


@keys.command()
@common_options("as_json", "config")
def transport(console: Console) -> None:
    """Print the transport key, for a sidecar's MEMORY_TRANSPORT_KEY. A sidecar needs no other key."""
    transports = load_keyring(console.settings).transports
    if not transports:
        raise KeyMissing("there is no master key to derive it from", hint=HOW_TO_SET)
    key = transports[0].encoded
    console.show({"key": key}, key)


@contextmanager
def _unreadable(owner: str, found: list[str]) -> Generator[None]:
    """Name an owner whose data key cannot be read, and go on with the others."""
    try:
        yield
    except Tampered as error:
        found.append(owner)
        lazy.printing.line(f"{owner}: {error.message}", err=True)


@keys.command()
@common_options()
def rotate(console: Console, agent: Annotated[str | None, typer.Option(help="Only this agent.")] = None) -> None:
    """Give agents new data keys and encrypt their memories again. Run it again to resume after an interruption."""
    namespace = console.namespace
    resealed: dict[str, int] = {}
    unread: list[str] = []

    async def act(service: Service) -> int:
        await service.vault.check()
        failed = 0
        for owner in await lazy.key_rotation.owners_with_keys(service.backend, namespace, agent):
            with _unreadable(owner, unread):
                rotated = await lazy.key_rotation.rotate(service, namespace, owner)
            if owner in unread:
                continue
            failed += rotated.closed
            resealed[owner] = rotated.resealed
            if not console.as_json:
                lazy.printing.line(
                    f"{owner}: {counted(rotated.resealed, 'memory', 'memories')} encrypted under the new key."
                )
        return failed

    failed = console.with_service(act)
    console.show({"resealed": resealed, "closed": failed}, lambda: None)
    if failed:
        lazy.printing.line(f"{failed} memories cannot be decrypted; their old keys are kept.", err=True)
    if failed or unread:
        raise typer.Exit(CHECK_FAILED)


@keys.command()
@common_options("as_json", "config", "data_dir")
def rewrap(console: Console, namespace: Annotated[str | None, typer.Option(help="Only this one.")] = None) -> None:
    """Encrypt all data keys under the first master key. Older ones still verify signatures and audit."""

    unread: list[str] = []

    async def act(service: Service) -> int:
        await service.vault.check()
        number = 0
        if namespace:
            await lazy.running.check_namespace(await service.backend.client(), check_name(namespace, "namespace"))
        for name in [namespace] if namespace else await service.namespaces.names():
            for owner in await lazy.key_rotation.owners_with_keys(service.backend, name):
                with _unreadable(owner, unread):
                    number += await lazy.key_rotation.rewrap(service.backend, name, owner)
        return number

    number = console.with_service(act)
    console.show({"rewrapped": number}, f"{number} data keys are encrypted under the current master key.")
    if unread:
        raise typer.Exit(CHECK_FAILED)
