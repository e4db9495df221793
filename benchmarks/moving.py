"""Export and import: memories per second in every format, with and without vectors, without waiting for embedding.

`python -m benchmarks.moving REDIS_URL [NUMBER]` writes namespaces named bench-… into that Redis, where no sidecar
should run. It uses fixtures of the tests: `PYTHONPATH=tests`.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table
from support.transfer_fixtures import FORMATS

from memory_core.records.ids import new_id
from memory_core.settings.settings import Settings
from memory_server.cli.console import Console as CommandConsole
from memory_server.service import Service
from memory_server.transfer.exporter import ExportOptions, export
from memory_server.transfer.importer import ImportOptions, import_path

T = TypeVar("T")
_DIMENSION = 384


def _timed(settings: Settings, action: Callable[[Service], Awaitable[T]]) -> float:
    """The seconds that an action takes once Redis is connected."""

    async def run(service: Service) -> float:
        started = time.perf_counter()
        await action(service)
        return time.perf_counter() - started

    console = CommandConsole()
    console.settings = settings
    return console.with_service(run)


def _with_vectors(plain: Path, packed: Path) -> Path:
    """Add random vectors to an export."""
    chance, rows = np.random.default_rng(7), [json.loads(row) for row in plain.read_bytes().splitlines()]
    for row in rows:
        if row["kind"] == "memory":
            vector = chance.standard_normal(_DIMENSION).astype("<f4")
            row["vectors"] = [base64.b64encode((vector / np.linalg.norm(vector)).astype("<f4").tobytes()).decode()]
    packed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return packed


def main() -> None:
    """Print a table."""
    settings, number = Settings.load(redis_url=sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    table, run = Table("what", "s", "memories/s", title=f"{number} memories"), new_id()[-6:]

    def show(what: str, seconds: float) -> None:
        table.add_row(what, f"{seconds:.2f}", f"{number / seconds:,.0f}")

    def import_file(path: Path, name: str, how: ImportOptions) -> float:
        return _timed(settings, lambda service: import_path(service, f"bench-{run}-{name}", path, how))

    with tempfile.TemporaryDirectory() as folder:
        for name, make in FORMATS.items():
            home = Path(folder) / name
            home.mkdir()
            path, how = make(home, number), ImportOptions(agent="ann")
            show(f"import {name}", import_file(path, name, how))
            show(f"import {name} again", import_file(path, name, how))
        plain, packed, again = (Path(folder) / name for name in ("a.jsonl", "v.jsonl", "v2.jsonl.zst"))
        source, copy = f"bench-{run}-mem0", f"bench-{run}-copy"
        show("export", _timed(settings, lambda service: export(service, source, plain, ExportOptions())))
        show("import of it", import_file(plain, "plain", ImportOptions()))
        show("import of it with vectors", import_file(_with_vectors(plain, packed), "copy", ImportOptions()))
        show(
            "export with vectors, packed",
            _timed(settings, lambda service: export(service, copy, again, ExportOptions())),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
