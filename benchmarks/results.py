"""Keeps what a benchmark measured, with what it was measured on, and prints it as a table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent / "results"
Row = Mapping[str, Any]


def keep(name: str, measured: Any) -> None:
    """Write what was measured as JSON, beside what the machine was doing: its load tells how far to trust it."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    machine = {"cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()}
    said = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "measured": measured}
    (FOLDER / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n")


def kept(name: str) -> Any:
    """Read what was measured last; None if nothing was."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text())["measured"] if path.exists() else None


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table; its columns are the fields of the last."""
    table = Table(*rows[-1], title=title)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in rows[-1]))
    Console(width=160).print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
