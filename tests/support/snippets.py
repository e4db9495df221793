"""Runs the fenced blocks of the documentation as a reader would: Python over MCP, commands in the shell, JSON parsed.

The blocks of a page run in their order and share their variables, their folder and their namespaces. A `text` block
after one that ran is what that printed, ids, times and scores aside. A block that cannot run has
`<!-- not run: why -->` before it.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from memory_core.errors import MemoryServiceError
from memory_server import cli

_BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+) -->\n+)?^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.M | re.S)
_TITLE = re.compile(r'title="([^"]+)"')
_URL = "http://127.0.0.1:8765"
_NAMESPACE = re.compile(r"\b(namespace[= ])([a-z0-9-]+)")
_CHANGING = (
    (re.compile(r"\b0[01][0-9a-hjkmnp-tv-z]{24}\b"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)"), "TIME"),
    (re.compile(r"data [0-9a-f]{8}>"), "data X>"),
    (re.compile(r"\b[01]\.\d+\b"), "SCORE"),
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    line: int
    language: str
    title: str
    code: str
    why_not: str
    """Why it is not run; empty if it is."""


def blocks(path: Path) -> list[Block]:
    """Read the blocks of a page, in order."""
    text = path.read_text()
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        language, _, rest = match["info"].partition(" ")
        title = _TITLE.search(rest)
        line = text.count("\n", 0, match.start("code"))
        found.append(Block(line, language, title[1] if title else "", match["code"], match["why"] or ""))
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.M)), f"{path}: a block that nobody would run"
    return found


def settled(text: str) -> str:
    """Take out of an output what differs from run to run."""
    for pattern, name in _CHANGING:
        text = pattern.sub(name, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@dataclass(slots=True)
class Page:
    """A page being read by somebody who tries everything in it."""

    url: str
    environment: dict[str, str]
    prefix: str
    """Of namespaces, so that pages that use the same do not meet."""
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: str | None = None

    async def run(self, block: Block) -> None:
        """Run one block.

        Raises:
            AssertionError: it does not do what the page says.
        """
        if block.title:
            _keep(block.title, block.code)
        if block.language == "text":
            assert self.printed is not None, f"line {block.line}: the output of nothing"
            assert settled(self.printed) == settled(block.code)
            return
        match block.language:
            case "python":
                self.printed = await self._python(self._here(block.code))
            case "console":
                await self._console(self._here(block.code))
            case "json":
                json.loads(block.code)
            case "jsonl":
                assert all(isinstance(json.loads(line), dict) for line in block.code.splitlines())
            case other:
                raise AssertionError(f"line {block.line}: nobody knows how to run {other!r}")

    def _here(self, code: str) -> str:
        return _NAMESPACE.sub(rf"\g<1>{self.prefix}-\g<2>", code.replace(_URL, self.url))

    def _page(self, output: str) -> str:
        return output.replace(f"{self.prefix}-", "").replace(self.url, _URL)

    async def _python(self, source: str) -> str:
        code = compile(source, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with redirect_stdout(StringIO()) as said:
            if "asyncio.run(" in source:  # a whole program, which brings its own loop
                await asyncio.to_thread(exec, code, self.names)
            else:
                result = eval(code, self.names)
                if inspect.isawaitable(result):
                    await result
        return self._page(said.getvalue())

    async def _console(self, source: str) -> None:
        """Run commands; lines after one are what it says."""
        for command, expected in _commands(source):
            said = self._page(await self._command_line(command))
            if expected:
                assert settled(said) == settled(expected), command

    async def _command_line(self, line: str) -> str:
        said = ""
        for words in _parts(line):
            environment = dict(self.environment)
            while "=" in words[0]:
                name, _, value = words.pop(0).partition("=")
                environment[name] = value
            target = words.pop() if ">" in words else ""
            assert words[0] == "redis-memory", f"only redis-memory is run here, not {words[0]}"
            arguments = [word for word in words[1:] if word != ">"]
            result = await asyncio.to_thread(CliRunner().invoke, cli.app, arguments, env=environment)
            refused = result.exception
            if refused and not isinstance(refused, SystemExit | MemoryServiceError):
                raise refused
            expects_failure = "exit code" in line
            assert (refused is None) != expects_failure, f"{line}: {result.output}{refused!r}"
            if target:
                _keep(target, result.stdout)
            said += "" if target else result.stdout
            said += _told(refused) if isinstance(refused, MemoryServiceError) else ""
        return said


def _keep(name: str, text: str) -> None:
    """Write a file into the page's folder."""
    Path(name).write_text(text)


def _commands(source: str) -> Iterator[tuple[str, str]]:
    """Give each command and the output that stands below it."""
    for part in re.split(r"^\$ ", source, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def _told(refused: MemoryServiceError) -> str:
    """Give a refusal as the program writes it."""
    return f"{refused.code}: {refused.message}" + (f" ({refused.hint})" if refused.hint else "")


def _parts(line: str) -> Iterator[list[str]]:
    """Split a line at `&&` into words, as a shell would."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word == "&&":
            yield words
            words = []
        else:
            words.append(word)
