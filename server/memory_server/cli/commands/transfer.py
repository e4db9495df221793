"""`redis-memory export | import`: exports a namespace to a file, and imports our files or those of other products.

Exit codes: 0 success; 1 some records were left out; 2 wrong command line; 78 refused or interrupted, and running the
command again resumes it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory_core.records.memory import Priority, Visibility
from memory_server.cli import lazy
from memory_server.cli.console import CHECK_FAILED, Console, common_options
from memory_server.contract.untrusted_text import counted

if TYPE_CHECKING:
    from memory_server.transfer.exporter import Exported
    from memory_server.transfer.importer import Imported

_FORMATS = "redis-memory, mcp-memory, mcp-memory-service, mem0, chatgpt, claude, folder"
_OUTCOMES = {
    "kept": "are here already",
    "differs": "are here with other content and stay unchanged",
    "taken": "have the id of another agent's memory here",
    "unknown_owner": "belong to an agent that was deleted here, or that the file may not name",
    "expired": "have expired",
}


@common_options()
def export(
    console: Console,
    file: Annotated[Path, typer.Argument(help="JSON lines file to write; compressed if its name ends in .zst.")],
    vectors: Annotated[bool, typer.Option(help="Include vectors; without them, import computes them again.")] = True,
    sensitive: Annotated[
        bool, typer.Option(help="Include sensitive memories, encrypted; needs the master key.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write all memories of a namespace to a file, with their owners and permissions.

    Run it again to resume after an interruption. Exits with 1 if altered memories were left out.
    """
    options, namespace = lazy.exporter.ExportOptions(vectors, sensitive), console.namespace
    with console.progress() as progress:
        done = console.with_service(
            lambda service: lazy.exporter.export(
                service,
                namespace,
                file,
                options,
                force=force,
                on_progress=lambda done, total: progress("memories", done, total),
            )
        )
    console.show(_export_result(done), lambda: _print_export(done))
    if not done.whole:
        raise typer.Exit(CHECK_FAILED)


@common_options()
def import_(
    console: Console,
    path: Annotated[Path, typer.Argument(help="File or folder to read.")],
    format_name: Annotated[str | None, typer.Option("--format", help=f"{_FORMATS}; detected if omitted.")] = None,
    agent: Annotated[str | None, typer.Option(help="Owner of imported memories.")] = None,
    visibility: Annotated[Visibility, typer.Option(help="Visibility of foreign memories.")] = Visibility.PRIVATE,
    priority: Annotated[
        Priority | None,
        typer.Option(help="Priority of foreign memories, with its lifetime; medium without expiry if omitted."),
    ] = None,
    sensitive: Annotated[bool, typer.Option("--sensitive", help="Encrypt foreign memories.")] = False,
    tag: Annotated[list[str] | None, typer.Option(help="Tag to add to foreign memories; repeatable.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out unreadable records.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Restore owners and grants of an export that no key of this server signed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be imported.")] = False,
) -> None:
    """Import an export, or the memories of another memory server, a chat service or a folder.

    Existing memories stay unchanged, so the command may be run again, also after an interruption. Missing vectors are
    computed in the background; until then keyword search finds the memories.
    """
    defaults = lazy.incoming_memory.ForeignDefaults(visibility, priority, tuple(tag or ()), sensitive)
    options = lazy.importer.ImportOptions(format_name, agent, defaults, skip_bad, trust, dry_run)
    namespace = console.namespace
    started = time.perf_counter()
    with console.progress() as progress:
        done = console.with_service(
            lambda service: lazy.importer.import_path(
                service, namespace, path, options, lambda done, total: progress("records", done, total)
            )
        )
    seconds = time.perf_counter() - started
    console.show(_import_result(done, seconds), lambda: _print_import(done, seconds))
    if not done.whole:
        raise typer.Exit(CHECK_FAILED)


def _export_result(done: Exported) -> dict[str, Any]:
    return {
        "file": done.file,
        "memories": done.counts["memory"],
        "agents": done.counts["agent"],
        "grants": done.counts["grant"],
        "resumed_from": done.resumed_from,
        "left_out": dict(done.left_out),
        "whole": done.whole,
    }


def _print_export(done: Exported) -> None:
    resumed = f", resumed after {done.resumed_from}" if done.resumed_from else ""
    lazy.printing.line(
        f"Exported {counted(done.counts['memory'], 'memory')} of {counted(done.counts['agent'], 'agent')}"
        f" to {done.file}{resumed}."
    )
    for reason, number in sorted(done.left_out.items()):
        lazy.printing.line(f"left out: {number} {reason}")


def _import_result(done: Imported, seconds: float) -> dict[str, Any]:
    return {
        "format": done.format,
        "dry_run": done.dry_run,
        "read": done.read,
        "memories": dict(done.memories),
        "others": dict(done.others),
        "passed_over": dict(done.passed_over),
        "bad": done.bad_records,
        "bad_first": done.bad,
        "notes": done.notes,
        "whole": done.whole,
        "seconds": round(seconds, 3),
    }


def _print_import(done: Imported, seconds: float) -> None:
    new = counted(done.memories["new"], "new memory", "new memories")
    made = "would make" if done.dry_run else "made"
    records = counted(done.read, "record")
    lazy.printing.line(f"{done.format}: {records} {made} {new} ({seconds:.1f} s).")
    counts = [(_OUTCOMES.get(outcome, outcome), number) for outcome, number in sorted(done.memories.items())]
    counts += sorted(done.others.items())
    for what, number in counts:
        if what != "new":
            lazy.printing.line(f"{number} {what}")
    if done.passed_over:
        kinds = ", ".join(f"{number} × {kind}" for kind, number in sorted(done.passed_over.items()))
        lazy.printing.line(f"made no memory: {kinds}")
    bad = [f"{done.bad_records} cannot be read:", *done.bad] if done.bad_records else []
    for line in [*bad, *done.notes]:
        lazy.printing.line(line)
