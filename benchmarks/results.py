"""Saves the results of a benchmark with a description of the machine, and prints them as a table."""

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


def save(name: str, measured: Any) -> None:
    """Write results as JSON, with the machine's load, which shows how reliable they are."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    machine = {"cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()}
    report = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "measured": measured}
    (FOLDER / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


def load(name: str) -> Any:
    """Read the last results; None if there are none."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text())["measured"] if path.exists() else None


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table. The columns are the fields of the last row."""
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
