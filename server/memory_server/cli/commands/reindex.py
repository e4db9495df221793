"""`redis-memory reindex`: another model, or the index anew, while everything goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memory_core.errors import InvalidArgument
from memory_server.cli.console import AsJson, Config, DataDir, Namespace, load_settings, with_serving

if TYPE_CHECKING:
    from memory_server.operations.reindex import Index, Reindexed, Reindexing
    from memory_server.service import Service


def reindex(
    model: Annotated[
        str | None, typer.Option(help="Model that is to answer, of which a sidecar runs; its own if left out.")
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Let the model and index before answer again.")] = False,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Remove what is kept to go back to, and end the change.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Only say how far it is.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    leave_failed: Annotated[
        bool, typer.Option("--leave-failed", help="Switch even if some texts cannot be embedded.")
    ] = False,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Build the index of a namespace anew beside the one that answers, for another model or for its own, and switch.

    Searches and stores go on. For another model a sidecar of it must run beside: redis-memory-embedder --model NAME.
    Stopped or killed midway, run it again: it goes on. What was before is kept until --drop-old.
    """
    from memory_server.cli import printing

    if sum((model is not None, back, drop_old)) > 1:
        raise InvalidArgument("--model, --back and --drop-old exclude each other")
    settings = load_settings(config, data_dir, namespace)
    with printing.progress(as_json) as shown:
        stages: dict[str, int] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = int(shown.add_task(stage, total=total))
            shown.update(shown.task_ids[stages[stage]], completed=done, total=total)

        async def act(service: Service) -> Reindexing | Reindexed:
            from memory_server.operations import reindex

            where = settings.namespace
            if status or dry_run:
                said = await reindex.look(service, where)
                return said if status else said.model_copy(update={"next": await _would(service, where)})
            if back:
                return await reindex.back(service, where, tell)
            if drop_old:
                return await reindex.drop(service, where, tell)
            target = await reindex.choose(service, where, model)
            return await reindex.change(service, where, target, tell, leave_failed=leave_failed)

        async def _would(service: Service, where: str) -> str:
            from memory_server.operations import reindex

            return await reindex.would(service, where, model, back=back, drop_old=drop_old)

        found = with_serving(settings, act)
    if as_json:
        printing.emit(found.model_dump(mode="json"))
    else:
        _print(found)


def _print(found: Reindexing | Reindexed) -> None:
    from memory_server.cli import printing
    from memory_server.operations.reindex import Reindexed

    if isinstance(found, Reindexed):
        counts = f"{found.asked} texts embedded, {found.failed} failed, {found.unreadable} left out as not to be read"
        told = [("namespace", found.namespace), ("done", found.done), ("answers", f"{found.model} by {found.index}")]
        printing.pairs([*told, ("texts", counts), ("seconds", found.seconds)])
        return
    printing.pairs(
        [
            ("namespace", found.namespace),
            ("answers", _line(found.answers, found.pieces)),
            ("kept", found.other and _line(found.other, found.pieces)),
            ("phase", found.phase),
            ("differs", "; ".join(found.drift) or None),
            ("next", found.next or None),
        ]
    )


def _line(one: Index, pieces: int) -> str:
    return (
        f"{one.model} ({one.dimension} dimensions) by {one.index}: {one.embedded} of {pieces} texts, "
        f"{len(one.sidecars)} sidecars"
    )
