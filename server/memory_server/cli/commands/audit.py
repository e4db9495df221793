"""`redis-memory audit`: verifies, exports and shows the audit log."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, BinaryIO, TypeVar

import typer
import zstandard

from memory_core.crypto.secret_files import replacing
from memory_core.errors import InvalidArgument, plain_line
from memory_core.records.keys import Keys
from memory_core.records.times import to_iso
from memory_server.cli import lazy
from memory_server.cli.console import CHECK_FAILED, Console, common_options, group
from memory_server.contract.untrusted_text import counted

if TYPE_CHECKING:
    from memory_core.crypto.keyring import Keyring
    from memory_core.crypto.signed_entry import SignedEntry
    from memory_core.redis_client import Client
    from memory_server.security.audit.verifier import AuditReport

T = TypeVar("T")
audit = group("audit", "Verify, export and read the audit log.")

_MOST_SHOWN = 20
_POLL_SECONDS = 0.2
_NO_KEY = (
    "no key is configured, so signatures and seals cannot be checked, only the numbering; "
    "set MEMORY_MASTER_KEY, _FILE or _COMMAND as for the server"
)


@audit.command()
@common_options()
def verify(
    console: Console,
    file: Annotated[Path | None, typer.Option(help="Check this export instead of Redis.")] = None,
    expect: Annotated[str | None, typer.Option(help="Head from an earlier check, NUMBER:CHAIN.")] = None,
) -> None:
    """Check that no entry was removed, changed, reordered or forged. Exits with 1 if one was.

    Keep the printed head outside Redis. A later check with `--expect` also detects that Redis was restored from an
    older copy.
    """
    if expect is not None and not re.fullmatch(r"[0-9]{1,18}:[0-9a-f]{64}", expect):
        raise InvalidArgument("--expect is not a head", hint="NUMBER:CHAIN, as an earlier check printed it")
    keyring = lazy.running.keyring_from_settings(console.settings)
    if file is not None:
        report = lazy.audit_export.check_file(file, keyring, expect)
    else:
        report = _on_redis(console, lambda client, keys: _check(client, keys, keyring, expect))
    console.show({"ok": report.ok, **asdict(report)}, lambda: _print_report(report))
    if not report.ok:
        raise typer.Exit(CHECK_FAILED)


@audit.command()
@common_options()
def export(
    console: Console,
    to: Annotated[Path, typer.Argument(help="JSON lines file to write; compressed if its name ends in .zst.")],
) -> None:
    """Write all entries and seals to a file, which `verify --file` checks without Redis."""
    number = _on_redis(console, lambda client, keys: _export(client, keys, to))
    console.show(
        {"lines": number, "file": str(to)},
        lambda: lazy.printing.line(f"Wrote {counted(number, 'line')} to {to}.", err=True),
    )


@audit.command()
@common_options()
def tail(
    console: Console,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=10_000, help="Number of past entries.")] = 10,
    follow: Annotated[bool, typer.Option(help="Wait for new entries.")] = True,
) -> None:
    """Show the last entries, and new ones until interrupted."""

    def show(entry: SignedEntry) -> None:
        lazy.printing.line(json.dumps(entry.fields) if console.as_json else _line(entry))

    with suppress(KeyboardInterrupt):
        _on_redis(console, lambda client, keys: _tail(client, keys, lines, follow, show))


async def _check(client: Client, keys: Keys, keyring: Keyring, expect: str | None) -> AuditReport:
    """Check, and check again if that fails: a server may have trimmed old entries meanwhile."""
    report = await lazy.audit_reader.check(client, keys, keyring, expect)
    return report if report.ok else await lazy.audit_reader.check(client, keys, keyring, expect)


async def _export(client: Client, keys: Keys, to: Path) -> int:
    number = 0
    try:
        with replacing(to) as raw, _lines_of(raw, packed=to.suffix == ".zst") as file:
            async for line in lazy.audit_export.lines(client, keys):
                file.write(line.encode("ascii") + b"\n")
                number += 1
    except OSError as error:
        raise InvalidArgument(f"cannot write {to}: {error.strerror}", hint="choose another file") from None
    return number


def _lines_of(raw: BinaryIO, *, packed: bool) -> AbstractContextManager[IO[bytes]]:
    return zstandard.open(raw, "wb", closefd=False) if packed else nullcontext(raw)


async def _tail(client: Client, keys: Keys, number: int, follow: bool, show: Callable[[SignedEntry], None]) -> None:
    async with lazy.connection.store_errors():
        rows = await client.execute_command(b"XREVRANGE", keys.audit, "+", "-", "COUNT", max(number, 1))
    entries = [lazy.audit_entries.SignedEntry(at, tuple(parts)) for at, parts in reversed(rows)]
    for entry in entries[-number:] if number else []:
        show(entry)
    at = entries[-1].id if entries else b""
    while follow:
        for entry in await lazy.audit_reader.entries_after(client, keys, at, lazy.audit_reader.AT_ONCE):
            show(entry)
            at = entry.id
        await asyncio.sleep(_POLL_SECONDS)


def _print_report(report: AuditReport) -> None:
    lazy.printing.line(
        f"{report.namespace}: {report.entries} entries from number {report.first}, "
        f"sealed up to {report.sealed_to}, {report.unsealed} not sealed yet"
    )
    if not report.keyed:
        lazy.printing.line(f"not verified: {_NO_KEY}", color="yellow")
    elif report.unsigned:
        lazy.printing.line(f"entries up to {report.unsigned} were written before a key was configured", color="yellow")
    if report.head:
        lazy.printing.line(f"head {report.head}")
    if report.ok:
        lazy.printing.line("verified", color="green") if report.keyed else lazy.printing.line("no number is missing")
        return
    lazy.printing.line(counted(report.number_of_problems, "problem"))
    rows = ((problem.number, problem.kind, problem.detail) for problem in report.problems[:_MOST_SHOWN])
    lazy.printing.table(("number", "problem", "evidence"), rows)
    if report.number_of_problems > _MOST_SHOWN:
        lazy.printing.line(f"… and {report.number_of_problems - _MOST_SHOWN} more")


def _line(entry: SignedEntry) -> str:
    fields = {name: plain_line(value) for name, value in entry.fields.items()}
    acting_for = f" as {fields['as']}" if "as" in fields else ""
    begin = f"{fields.get('n', '')} {_time(fields.get('at', ''))} {fields.get('who', '')}"
    result = f"{fields.get('op')} {fields.get('outcome')} [{fields.get('ids')}] {fields.get('from')}"
    return f"{begin}{acting_for} {result}"


def _time(at: str) -> str:
    """Return an entry's time in ISO 8601, or unchanged if a forged entry has no time."""
    with suppress(ValueError, OverflowError, OSError):
        return to_iso(float(at)) or at
    return at


def _on_redis(console: Console, action: Callable[[Client, Keys], Awaitable[T]]) -> T:
    return console.on_redis(lambda client: action(client, Keys(console.namespace)))
