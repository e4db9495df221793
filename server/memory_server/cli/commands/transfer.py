"""`redis-memory export | import`: a namespace into a file, and memories from files of ours or of others, from a shell.

Exit codes: 0 all of it; 1 some of it was left out, and the answer says what; 2 the command was not understood;
78 nothing could be done, or not all, and why (run again, it goes on).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memory_core.records.memory import Priority, Visibility
from memory_server.cli.console import AsJson, Config, DataDir, Namespace, load_settings, with_service

if TYPE_CHECKING:
    from memory_server.transfer.exporter import Exported
    from memory_server.transfer.importer import Imported

_FORMATS = "redis-memory, mcp-memory, mcp-memory-service, mem0, chatgpt, claude, folder"


def export(
    file: Annotated[Path, typer.Argument(help="File to write: JSON lines; packed if its name ends in .zst.")],
    vectors: Annotated[bool, typer.Option(help="With vectors; without, they are made anew at import.")] = True,
    sensitive: Annotated[bool, typer.Option(help="With sensitive memories, encrypted; needs the master key.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
    namespace: Namespace = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Write all memories of a namespace to a file, with whose they are and who may see them.

    Stopped midway, run it again: it goes on. Exits with 1 if memories were left out because they were tampered with.
    """
    from memory_server.transfer.exporter import What
    from memory_server.transfer.exporter import export as use_case

    settings, what = load_settings(config, data_dir, namespace), What(vectors, sensitive)
    with _progress("memories", quiet=as_json) as tell:
        done = with_service(
            settings, lambda service: use_case(service, settings.namespace, file, what, force=force, tell=tell)
        )
    typer.echo(_of_export(done, as_json))
    if not done.whole:
        raise typer.Exit(1)


def import_(
    path: Annotated[Path, typer.Argument(help="File or folder to read.")],
    format_name: Annotated[
        str | None, typer.Option("--format", help=f"One of {_FORMATS}; found out if left out.")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="Whose foreign memories become.")] = None,
    visibility: Annotated[Visibility, typer.Option(help="Of foreign memories.")] = Visibility.PRIVATE,
    priority: Annotated[
        Priority | None, typer.Option(help="Of foreign memories, with its lifetime; else medium, for ever.")
    ] = None,
    sensitive: Annotated[bool, typer.Option("--sensitive", help="Encrypt foreign memories.")] = False,
    tag: Annotated[list[str] | None, typer.Option(help="Added to foreign memories; may be repeated.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be read.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: AsJson = False,
    namespace: Namespace = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Bring in an export, or what another memory server, a chat service or a folder holds.

    What is there already stays as it is, so it may be run again, also after it was stopped. Vectors that are not in the
    file are made in the background; until then memories are found by their words.
    """
    from memory_server.transfer.arrivals import Wish
    from memory_server.transfer.importer import How, import_path

    settings = load_settings(config, data_dir, namespace)
    how = How(format_name, agent, Wish(visibility, priority, tuple(tag or ()), sensitive), skip_bad, dry_run)
    started = time.perf_counter()
    with _progress("records", quiet=as_json) as tell:
        done = with_service(settings, lambda service: import_path(service, settings.namespace, path, how, tell))
    typer.echo(_of_import(done, time.perf_counter() - started, as_json))
    if not done.whole:
        raise typer.Exit(1)


@contextmanager
def _progress(what: str, *, quiet: bool) -> Generator[Callable[[int, int], None] | None]:
    """Show a bar on stderr, where that is a terminal."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _of_export(done: Exported, as_json: bool) -> str:
    if as_json:
        return json.dumps(
            {
                "file": done.file,
                "memories": done.counts["memory"],
                "agents": done.counts["agent"],
                "grants": done.counts["grant"],
                "resumed_from": done.resumed_from,
                "left_out": dict(done.left_out),
                "whole": done.whole,
            }
        )
    went_on = f", going on from {done.resumed_from}" if done.resumed_from else ""
    told = [f"{done.counts['memory']} memories of {done.counts['agent']} agents are in {done.file}{went_on}."]
    told += [f"left out: {number} {reason}" for reason, number in sorted(done.left_out.items())]
    return "\n".join(told)


def _of_import(done: Imported, seconds: float, as_json: bool) -> str:
    new = done.memories["new"]
    if as_json:
        return json.dumps(
            {
                "format": done.format,
                "dry_run": done.dry_run,
                "read": done.read,
                "memories": dict(done.memories),
                "others": dict(done.others),
                "bad": done.bad_records,
                "bad_first": done.bad,
                "notes": done.notes,
                "whole": done.whole,
                "seconds": round(seconds, 3),
            }
        )
    would = "would be" if done.dry_run else "are"
    told = [f"{done.format}: {new} of {done.read} records {would} new memories ({seconds:.1f} s)."]
    told += [f"{number} {_FATES.get(fate, fate)}" for fate, number in sorted(done.memories.items()) if fate != "new"]
    told += [f"{number} {what}" for what, number in sorted(done.others.items())]
    told += [f"{done.bad_records} cannot be read:", *done.bad] if done.bad_records else []
    return "\n".join([*told, *done.notes])


_FATES = {
    "kept": "are here already",
    "differs": "are here with other content, and stay as they are here",
    "taken": "have an id that is another agent's memory here",
    "unknown_owner": "belong to an agent that was deleted here",
    "expired": "have expired",
}
