"""`redis-memory audit`: whether the audit is whole, and what stands in it, told from a shell."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, TypeVar

import typer

from memory_core.errors import InvalidArgument
from memory_server.cli.console import AsJson, Config, DataDir, Namespace, load_settings

if TYPE_CHECKING:
    from memory_core.crypto.keyring import Keyring
    from memory_core.records.keys import Keys
    from memory_core.records.signed_entry import Entry
    from memory_core.settings.settings import Settings
    from memory_core.store.connection import Client
    from memory_server.security.audit.verifier import Report

T = TypeVar("T")
audit = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Check, export and read the audit.")

_SHOWN = 20
_WITHOUT_KEY = (
    "no key is known here, so signatures and seals cannot be checked, only numbers; "
    "set MEMORY_MASTER_KEY, _FILE or _COMMAND as for the server"
)


@audit.command()
def verify(
    namespace: Namespace = None,
    file: Annotated[Path | None, typer.Option(help="Check this export instead of Redis.")] = None,
    expect: Annotated[str | None, typer.Option(help="Head kept from an earlier check, NUMBER:CHAIN.")] = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Check that nothing was removed, changed, reordered or forged. Exits with 1 if something was.

    Keep the head that it prints elsewhere: `--expect` with it later also shows that all of Redis was put back.
    """
    if expect is not None and not re.fullmatch(r"[0-9]{1,18}:[0-9a-f]{64}", expect):
        raise InvalidArgument("--expect is not a head", hint="NUMBER:CHAIN, as an earlier check printed it")
    from memory_server.local.running import keyring_by_settings

    settings = load_settings(config, data_dir, namespace)
    keyring = keyring_by_settings(settings)
    if file is not None:
        from memory_server.security.audit.export import check_file

        report = check_file(file, keyring, expect)
    else:
        report = _on_redis(settings, lambda client, keys: _check(client, keys, keyring, expect))
    if as_json:
        typer.echo(json.dumps({"ok": report.ok, **asdict(report)}, indent=2))
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


@audit.command()
def export(
    to: Annotated[Path, typer.Argument(help="File to write: JSON lines; packed if its name ends in .zst.")],
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Write all entries and seals to a file, which `verify --file` checks without Redis."""
    number = _on_redis(load_settings(config, data_dir, namespace), lambda client, keys: _export(client, keys, to))
    if as_json:
        typer.echo(json.dumps({"lines": number, "file": str(to)}, indent=2))
    else:
        typer.echo(f"{number} lines are in {to}.", err=True)


@audit.command()
def tail(
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=10_000, help="How many to begin with.")] = 10,
    follow: Annotated[bool, typer.Option(help="Go on with what comes.")] = True,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Show the last entries and those that come, until interrupted."""
    show = _print_json if as_json else _print_entry
    settings = load_settings(config, data_dir, namespace)
    try:
        _on_redis(settings, lambda client, keys: _tail(client, keys, lines, follow, show))
    except KeyboardInterrupt:
        return


async def _check(client: Client, keys: Keys, keyring: Keyring, expect: str | None) -> Report:
    """Check, and once more where something is wrong: old entries may have been let go meanwhile."""
    from memory_server.security.audit import reader

    report = await reader.check(client, keys, keyring, expect)
    return report if report.ok else await reader.check(client, keys, keyring, expect)


async def _export(client: Client, keys: Keys, to: Path) -> int:
    from memory_server.security.audit.export import lines

    number = 0
    with _writing(to) as file:
        async for line in lines(client, keys):
            file.write(line + "\n")
            number += 1
    return number


def _writing(to: Path) -> IO[str]:
    import zstandard

    try:
        return zstandard.open(to, "wt") if to.suffix == ".zst" else to.open("w", encoding="ascii")
    except OSError as error:
        raise InvalidArgument(f"cannot write {to}: {error.strerror}", hint="choose another file") from None


async def _tail(client: Client, keys: Keys, number: int, follow: bool, show: Callable[[Entry], None]) -> None:
    from memory_core.records.signed_entry import Entry
    from memory_core.store.connection import store_errors
    from memory_server.security.audit import reader

    async with store_errors():
        rows = await client.execute_command(b"XREVRANGE", keys.audit, "+", "-", "COUNT", max(number, 1))
    found = [Entry(at, tuple(parts)) for at, parts in reversed(rows)]
    for entry in found[-number:] if number else []:
        show(entry)
    at = found[-1].id if found else b""
    while follow:
        for entry in await reader.entries_after(client, keys, at, reader.AT_ONCE):
            show(entry)
            at = entry.id
        await asyncio.sleep(0.2)


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    told = Console(highlight=False, soft_wrap=True)
    told.print(
        f"{report.namespace}: {report.entries} entries from number {report.first}, "
        f"sealed up to {report.sealed_to}, {report.unsealed} not yet sealed"
    )
    if not report.keyed:
        told.print(f"[yellow]not verified[/]: {_WITHOUT_KEY}")
    elif report.unsigned:
        told.print(f"[yellow]entries up to {report.unsigned} were written before there was a key[/]")
    if report.head:
        told.print(f"head {report.head}")
    if report.ok:
        told.print("[green]whole[/]" if report.keyed else "no number is missing")
        return
    table = Table("number", "what", "how it shows", title=f"{report.number_of_problems} problems")
    for problem in report.problems[:_SHOWN]:
        table.add_row(str(problem.number), problem.kind, problem.detail)
    told.print(table)


def _print_json(entry: Entry) -> None:
    typer.echo(json.dumps(entry.fields))


def _print_entry(entry: Entry) -> None:
    fields = {name: ascii(value)[1:-1] for name, value in entry.fields.items()}
    by = f" as {fields['as']}" if "as" in fields else ""
    said = [fields.get(name, "") for name in ("n", "at", "who")]
    typer.echo(
        f"{' '.join(said)}{by} {fields.get('op')} {fields.get('outcome')} [{fields.get('ids')}] {fields.get('from')}"
    )


def _on_redis(settings: Settings, action: Callable[[Client, Keys], Awaitable[T]]) -> T:
    async def run() -> T:
        from memory_core.records.keys import Keys
        from memory_server.local.running import connected

        async with connected(settings) as client:
            return await action(client, Keys(settings.namespace))

    return asyncio.run(run())
