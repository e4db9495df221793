"""`redis-memory reindex`: changes the embedding model or rebuilds the index, without downtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memory_core.errors import InvalidArgument
from memory_server.cli import lazy
from memory_server.cli.console import Console, common_options
from memory_server.contract.untrusted_text import counted

if TYPE_CHECKING:
    from memory_server.operations.reindex import Index, Reindexed, Reindexing
    from memory_server.service import Service


@common_options()
def reindex(
    console: Console,
    model: Annotated[str | None, typer.Option(help="New model, which a sidecar runs; else the current one.")] = None,
    back: Annotated[bool, typer.Option("--back", help="Switch back to the previous model and index.")] = False,
    drop_old: Annotated[bool, typer.Option("--drop-old", help="Finish: delete the previous model and index.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only show the progress.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    leave_failed: Annotated[
        bool, typer.Option("--leave-failed", help="Switch even if embedding some texts fails.")
    ] = False,
) -> None:
    """Build a new index of a namespace beside the current one, for another model or the same, and switch to it.

    Searches and stores continue. Another model needs a sidecar: redis-memory-embedder --model NAME. Run it again to
    resume after an interruption. The previous index is kept until --drop-old.
    """
    if sum((model is not None, back, drop_old)) > 1:
        raise InvalidArgument("--model, --back and --drop-old exclude each other")
    if status or dry_run:
        console.only_reads()
    namespace, changes = console.namespace, lazy.reindex
    with console.progress() as progress:

        async def act(service: Service) -> Reindexing | Reindexed:
            if status or dry_run:
                found = await changes.look(service, namespace)
                if status:
                    return found
                plan = await changes.would(service, namespace, model, back=back, drop_old=drop_old)
                return found.model_copy(update={"next": plan})
            if back:
                return await changes.back(service, namespace, progress)
            if drop_old:
                return await changes.drop(service, namespace, progress)
            target = await changes.choose(service, namespace, model)
            return await changes.change(service, namespace, target, progress, leave_failed=leave_failed)

        result = console.with_server(act)
    console.show(result.model_dump(mode="json"), lambda: _print(result))


def _print(result: Reindexing | Reindexed) -> None:
    if isinstance(result, lazy.reindex.Reindexed):
        failed = f"{result.failed} failed, {result.unreadable} unreadable and left out"
        texts = f"{counted(result.asked, 'text')} embedded, {failed}"
        lazy.printing.pairs(
            [
                ("namespace", result.namespace),
                ("done", result.done),
                ("current", f"{result.model} in {result.index}"),
                ("texts", texts),
                ("seconds", result.seconds),
            ]
        )
        return
    lazy.printing.pairs(
        [
            ("namespace", result.namespace),
            ("current", _line(result.answers, result.pieces)),
            ("kept", result.other and _line(result.other, result.pieces)),
            ("phase", result.phase),
            ("differs", "; ".join(result.drift) or None),
            ("next", result.next or None),
        ]
    )


def _line(index: Index, pieces: int) -> str:
    return (
        f"{index.model} ({index.dimension} dimensions, {index.precision}) in {index.index}: "
        f"{index.embedded} of {counted(pieces, 'text')}, {counted(len(index.sidecars), 'sidecar')}"
    )
