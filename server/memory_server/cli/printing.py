"""Prints tables for people and JSON for programs.

Text that agents wrote is untrusted: escape sequences and bidirectional controls are shown, never sent to the terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from memory_core.errors import plain, plain_line
from memory_server.contract.untrusted_text import framed

_BLANKS = re.compile(r" +((?:\x1b\[0m)?)$", re.MULTILINE)  # at the end of a line, with the end of its style
_LAST_COLUMN = 12  # columns that the last column of a table gets at least


def emit(value: object) -> None:
    """Print JSON with readable letters of any language."""
    page(json.dumps(value, indent=2, ensure_ascii=False))


def line(text: str, *, err: bool = False, color: str | None = None) -> None:
    """Print one line."""
    typer.secho(plain_line(text), err=err, fg=color)


def page(text: str) -> None:
    """Print lines that only the server wrote, such as a reference."""
    typer.echo(plain(text).removesuffix("\n"))


def untrusted(text: str) -> None:
    """Print a text that an agent wrote, each of its lines marked."""
    for one in framed(text):
        line(one)


def one_line(text: object, most: int = 200) -> str:
    """Return at most `most` characters of a text as one plain line."""
    words = " ".join(str(text).split())
    return plain_line(words if len(words) <= most else words[: most - 1] + "…")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], most: int = 200) -> None:
    """Print a table of cells of at most `most` characters, to a file or a pipe one line for each row.

    On a terminal the last column folds; the others are never cut: a line may be longer than the terminal.
    """
    cells = [[one_line("" if cell is None else cell, most) for cell in row] for row in rows]
    width = _terminal_width()
    if width is None:
        _print_rows(([columns] if any(columns) else []) + cells)
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        folds = column is columns[-1]
        drawn.add_column(column, overflow="fold", no_wrap=not folds)
    for row in cells:
        drawn.add_row(*map(Text, row))
    console = Console(highlight=False, markup=False, emoji=False)
    console.width = max(width, _needed_width(columns, cells))
    with console.capture() as text:
        console.print(drawn)
    sys.stdout.write(_BLANKS.sub(r"\1", text.get()))


def _terminal_width() -> int | None:
    """Columns of the terminal, None if stdout is not one."""
    return Console().width if sys.stdout.isatty() else None


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _needed_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns of the terminal that all but the last column of a table need, with a little of the last one."""
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    return sum(width + 2 for width in widths[:-1]) + min(widths[-1], _LAST_COLUMN)


def pairs(values: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line, without those that are None."""
    table(("", ""), ((name, value) for name, value in values if value is not None), most=2000)


@contextmanager
def progress(hidden: bool) -> Generator[Callable[[str, int, int], None]]:
    """Show a progress bar per stage on stderr, if that is a terminal. Yields `report(stage, done, total)`."""
    stderr = Console(stderr=True)
    stages: dict[str, int] = {}
    with Progress(console=stderr, transient=True, disable=hidden or not stderr.is_terminal) as bars:

        def report(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = int(bars.add_task(stage, total=total))
            bars.update(bars.task_ids[stages[stage]], completed=done, total=total)

        yield report
