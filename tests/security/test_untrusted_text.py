"""Text that agents wrote keeps to its line or its frame in every answer, error, log line and command."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import types
import typing
import unicodedata
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from memory_core.errors import NotFound, plain, plain_line
from memory_core.observe import logs
from memory_server.contract import agents, batch, dashboard, events, memories, reports, sharing, stats, tasks
from memory_server.contract.answer import Answer
from memory_server.contract.batch import BatchAnswer
from memory_server.contract.untrusted_text import MARK, framed, quoted, word
from memory_server.operations.health.report import DoctorReport

BREAKS = ("\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
FORGED = "PARTIAL: forged"
CANARY = "x" + "".join(brk + FORGED for brk in BREAKS) + "\u202e\u200b\U000e0041"
_MODULES = (agents, batch, dashboard, events, memories, reports, sharing, stats, tasks)
CLI = Path(sys.modules["memory_server"].__path__[0]) / "cli"


def _answers(kind: type[Answer] = Answer) -> Iterator[type[Answer]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _answers(child)


def _filled(kind: Any) -> Any:
    """Return a value of a type in which every text is the canary."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _filled(inner[0])
    if origin in (typing.Union, types.UnionType):
        return _filled(next(part for part in inner if part is not type(None)))
    if origin is typing.Literal:
        return inner[0]
    if origin is list:
        return [_filled(inner[0])]
    if origin is dict:
        return {_filled(inner[0]): _filled(inner[1])}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = typing.get_type_hints(kind, include_extras=True)
        return kind.model_construct(**{name: _filled(fields[name]) for name in kind.model_fields})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind))
    return kind(1) if kind in (int, float, bool) else CANARY


@pytest.mark.parametrize("kind", list(_answers()), ids=lambda kind: kind.__name__)
def test_no_field_of_an_answer_begins_a_line(kind: type[Answer]) -> None:
    answer = _filled(kind)
    if isinstance(answer, BatchAnswer):
        answer.results[0].ok = False
        answer.results[0].error = {"code": CANARY, "message": CANARY}
    text = answer.text()
    assert "forged" in text
    assert not [line for line in text.splitlines() if line.startswith("PARTIAL: forged")]
    assert not set(text) & {"\u202e", "\u200b", "\U000e0041"}


def test_every_answer_gives_its_text_as_lines() -> None:
    assert len(list(_answers())) > len(_MODULES)
    assert [kind for kind in _answers() if "text" in vars(kind)] == [Answer]
    assert not [kind for kind in _answers() if hasattr(kind, "summary")], "lines() replaces summary()"


def test_finding_of_the_doctor_begins_no_other_line() -> None:
    report = DoctorReport()
    report.warning(CANARY, CANARY, CANARY, where=CANARY)
    assert [line[:4] for line in report.text().splitlines()] == ["WARN", "    "]


def test_every_control_and_format_character_is_escaped() -> None:
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    risky = [char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in kinds]
    invisible = list("\u034f\u115f\u1160\u3164\uffa0\ufe00\U000e0100\U000e01ef")
    left = [hex(ord(char)) for char in [*risky, *invisible] if char in plain(f"a{char}b") and char not in "\t\n"]
    assert not left
    assert len(plain_line("".join(f"a{brk}b" for brk in BREAKS)).splitlines()) == 1


def test_joiners_hide_nothing_in_a_row() -> None:
    hidden = "\u200c\u200d\u200d\u200c\ufe0f\ufe0f"
    assert not set(plain(f"PAR{hidden}TIAL")) & set(hidden)
    assert plain("é\u200d\u200dé") == "é\\u200d\\u200dé"


@pytest.mark.parametrize("value", [CANARY, {CANARY: [CANARY, 1]}, '"', "a\\", "\U000e0041"])
def test_quoted_value_is_one_line_of_json(value: Any) -> None:
    text = quoted(value)
    assert json.loads(text) == value
    assert len(text.splitlines()) == 1
    assert plain_line(text) == text


def test_only_a_simple_word_stays_bare() -> None:
    assert [word(label) for label in ("python", "c++", "a b", "own)", "w" * 33)] == [
        "python", "c++", '"a b"', '"own)"', f'"{"w" * 33}"',
    ]  # fmt: skip


def test_every_line_of_a_frame_is_marked() -> None:
    lines = framed(CANARY + "\n\n> nested")
    assert all(line.startswith(MARK) and len(line.splitlines()) == 1 for line in lines)
    assert lines[-2:] == [MARK, "> > nested"]


def test_error_is_one_line() -> None:
    error = NotFound(CANARY, hint=CANARY)
    assert len(error.text().splitlines()) == 1
    assert all(len(str(value).splitlines()) == 1 for value in error.details().values())


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_message_is_one_line(form: logs.Format) -> None:
    stream = io.StringIO()
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        logs.configure("DEBUG", form, stream=stream)
        logging.getLogger("memory").warning("refused: %s", CANARY)
        try:
            raise ValueError(CANARY)
        except ValueError:
            logging.getLogger("memory").exception("failed")
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    lines = stream.getvalue().splitlines()
    assert "forged" in lines[0]
    assert not [line for line in lines if line.strip().startswith(FORGED)]


def test_commands_print_through_one_module() -> None:
    """It escapes what goes to a terminal."""
    direct: list[str] = []
    for path in CLI.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in {"typer.echo", "typer.secho", "print", "click.echo", "sys.stdout.write"}:
                direct.append(path.name)
    assert set(direct) == {"printing.py"}
