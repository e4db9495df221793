"""`redis-memory bench`: how fast this installation is, measured by the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memory_server.cli.console import AsJson, Config, DataDir, load_settings, with_serving

if TYPE_CHECKING:
    from memory_server.operations.bench import Measured

_PATIENCE_SECONDS = 30.0
"""A slow machine is to be measured, not refused."""


def bench(
    texts: Annotated[int, typer.Option(min=20, max=100_000, help="Texts to embed and to store.")] = 200,
    searches: Annotated[int, typer.Option(min=5, max=10_000, help="Searches.")] = 50,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Measure embedding, storing and searching here, in the namespace `bench`, and remove what was stored for it."""
    from memory_server.cli import printing
    from memory_server.operations.bench import Size, measure

    settings = load_settings(config, data_dir).model_copy(update={"embed_wait_seconds": _PATIENCE_SECONDS})
    with printing.progress(as_json) as shown:
        stages: dict[str, int] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = int(shown.add_task(stage, total=total))
            shown.update(shown.task_ids[stages[stage]], completed=done)

        measured = with_serving(settings, lambda service: measure(service, Size(texts, searches), tell))
    if as_json:
        printing.emit(measured.model_dump(mode="json"))
    else:
        _print(measured)


def _print(measured: Measured) -> None:
    from memory_server.cli import printing

    ready = measured.vectors_ready_seconds
    filled = "not within a minute" if ready is None else f"{ready} s after the last was stored"
    printing.pairs(
        [
            ("machine", measured.machine),
            ("Redis", f"{measured.redis}, durability {measured.durability}"),
            ("sidecars", f"{'; '.join(measured.sidecars)}, {measured.model}"),
            ("embedded", f"{measured.embedded_per_second}/s: {measured.texts} texts of some 45 words, 64 a call"),
            ("stored", f"{measured.stored_per_second}/s: {measured.texts} memories, one a call, 16 calls at a time"),
            ("vectors", f"all there {filled}"),
            (
                "searched",
                f"p50 {measured.search_p50_ms} ms, p95 {measured.search_p95_ms} ms: {measured.searches} hybrid ",
            ),
            ("", f"searches one after another, new texts each, over {measured.in_namespace} memories"),
        ]
    )
