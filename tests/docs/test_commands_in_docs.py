"""Every command that a page names exists, with the options that the page gives it."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from memory_server import cli
from memory_server.cli.reference import commands

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "decisions")]
)
COMMANDS = {
    tuple(path[1:]): {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    for path, command in commands(get_command(cli.app))
} | {("reference",): {"--tools", "--list"}}
GROUPS = {path[0] for path in COMMANDS if len(path) > 1}
CODE = re.compile(r"`([^`\n]*)`|^\$ (.*)$|^ *(?:\.venv/bin/)?(redis-memory .*)$", re.MULTILINE)
CALL = re.compile(r"""(?:^|[\s/`])redis-memory(?! ["']?http)((?: [^\s|>&;#)`]+| '[^']*')+)""")


def calls(page: Path) -> Iterator[list[str]]:
    """Yield the words after `redis-memory` of each call on a page."""
    for found in CODE.finditer(page.read_text()):
        for call in CALL.finditer(next(filter(None, found.groups()), "")):
            yield shlex.split(call[1])


def problem(words: list[str]) -> str | None:
    """Return the first word that is no command or option where it stands."""
    path = tuple(itertools.takewhile(lambda word: not word.startswith("-"), words))
    length = next((number for number in (2, 1) if path[:number] in COMMANDS), 0)
    if not length:
        return next((word for word in path if word not in GROUPS), None)
    options = (word.partition("=")[0] for word in words if word.startswith("--"))
    return next((word for word in options if word not in COMMANDS[path[:length]]), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_a_page_exist_with_their_options(page: Path) -> None:
    wrong = [(words, word) for words in calls(page) if (word := problem(words)) is not None]
    assert wrong == []


def test_pages_name_most_commands() -> None:
    assert len({tuple(words[:2]) for page in PAGES for words in calls(page)}) > 40
    assert problem(["serv"]) == "serv"
    assert problem(["tasks", "list", "--stat", "dead"]) == "--stat"
