"""`redis-memory bench`: measures how fast this installation is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memory_server.cli import lazy
from memory_server.cli.console import Console, common_options

if TYPE_CHECKING:
    from memory_server.operations.bench import Measurements

_EMBED_WAIT_SECONDS = 30.0  # A slow machine is measured, not refused


@common_options("as_json", "config", "data_dir")
def bench(
    console: Console,
    texts: Annotated[int, typer.Option(min=20, max=100_000, help="Texts to embed and to store.")] = 200,
    searches: Annotated[int, typer.Option(min=5, max=10_000, help="Searches.")] = 50,
) -> None:
    """Measure embedding, storing and searching in the namespace `bench`, then delete what was stored."""
    console.settings = console.settings.model_copy(update={"embed_wait_seconds": _EMBED_WAIT_SECONDS})
    size = lazy.bench.Size(texts, searches)
    with console.progress() as report:
        measured = console.with_server(lambda service: lazy.bench.measure(service, size, report))
    console.show(measured.model_dump(mode="json"), lambda: _print(measured))


def _print(measured: Measurements) -> None:
    ready = measured.vectors_ready_seconds
    vectors = "not complete within a minute" if ready is None else f"complete {ready} s after the last store"
    latency = f"p50 {measured.search_p50_ms} ms, p95 {measured.search_p95_ms} ms"
    rows = (
        ("machine", measured.machine),
        ("Redis", f"{measured.redis}, durability {measured.durability}"),
        ("sidecars", f"{'; '.join(measured.sidecars)}, {measured.model}"),
        ("embedding", f"{measured.embedded_per_second}/s: {measured.texts} texts of about 45 words, 64 per call"),
        ("storing", f"{measured.stored_per_second}/s: {measured.texts} memories, one per call, 16 calls at once"),
        ("vectors", vectors),
        ("searching", f"{latency}: {measured.searches} hybrid searches over {measured.in_namespace} memories"),
    )
    lazy.printing.pairs(rows)
