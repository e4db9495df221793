"""How the commands of `redis-memory` print: tables for people, JSON for programs, and nothing that acts on a terminal.

What agents wrote is never trusted to be plain: escape sequences and marks that turn text round are shown, not obeyed.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from memory_server.contract.answer import Answer

_WIDTH = 160
"""Columns where the output is no terminal."""
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of characters that act on what displays them."""
_KEPT = frozenset("\n\t\u200c\u200d")


def emit(value: Any) -> None:
    """Print JSON, with nothing in it that is not ASCII."""
    typer.echo(json.dumps(value, indent=2))


def emit_answer(answer: Answer) -> None:
    """Print an answer as JSON, without what it has none of."""
    emit(answer.model_dump(mode="json", exclude_none=True))


def plain(text: object) -> str:
    """Give a text with everything that would act on a terminal made visible."""
    return "".join(
        character.encode("unicode_escape").decode()
        if character not in _KEPT and unicodedata.category(character) in _ACTING
        else character
        for character in str(text)
    )


def one_line(text: object, most: int = 200) -> str:
    """Give the beginning of a text as one line."""
    line = " ".join(str(text).split())
    return plain(line if len(line) <= most else line[: most - 1] + "…")


def console() -> Console:
    """Make the console of stdout; as wide as the terminal, or wide."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _WIDTH)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", last_folds: bool = True
) -> None:
    """Print a table; its last column takes what room is left, the others are never cut."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        title=title or None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        show_header=any(columns),
    )
    for column in columns:
        folds = last_folds and column is columns[-1]
        drawn.add_column(column, overflow="fold", no_wrap=not folds)
    for row in rows:
        drawn.add_row(*(Text(one_line("" if cell is None else cell)) for cell in row))
    console().print(drawn)


def pairs(found: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line; what is None is left out."""
    table(("", ""), ((name, value) for name, value in found if value is not None))


@contextmanager
def progress(hidden: bool) -> Generator[Progress]:
    """Show the progress of long work on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    told = Console(stderr=True)
    with Progress(console=told, transient=True, disable=hidden or not told.is_terminal) as shown:
        yield shown
