"""Runs the fenced blocks of the documentation: Python over MCP, commands in the shell, JSON parsed.

The blocks of a page run in order and share variables, folder and namespaces. A `text` block is the output of the
block before it, apart from ids, times and scores. A block that cannot run has `<!-- not run: why -->` before it.
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
    """Why it is not run; empty if it runs."""


def blocks(path: Path) -> list[Block]:
    """Read the blocks of a page, in order."""
    text = path.read_text()
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        language, _, rest = match["info"].partition(" ")
        title = _TITLE.search(rest)
        line = text.count("\n", 0, match.start("code"))
        found.append(Block(line, language, title[1] if title else "", match["code"], match["why"] or ""))
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.M)), f"{path}: a fenced block is not recognised"
    return found


def normalized(text: str) -> str:
    """Replace the parts of an output that differ from run to run."""
    for pattern, name in _CHANGING:
        text = pattern.sub(name, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@dataclass(slots=True)
class Page:
    """A page whose blocks are run one after another."""

    url: str
    environment: dict[str, str]
    prefix: str
    """Prefix of namespaces, so that two pages do not share one."""
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: str | None = None

    async def run(self, block: Block) -> None:
        """Run one block.

        Raises:
            AssertionError: the block does not do what the page says.
        """
        if block.title:
            _keep(block.title, block.code)
        if block.language == "text":
            assert self.printed is not None, f"line {block.line}: output without a block before it"
            assert normalized(self.printed) == normalized(block.code)
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
                raise AssertionError(f"line {block.line}: cannot run {other!r} blocks")

    def _here(self, code: str) -> str:
        return _NAMESPACE.sub(rf"\g<1>{self.prefix}-\g<2>", code.replace(_URL, self.url))

    def _page(self, output: str) -> str:
        return output.replace(f"{self.prefix}-", "").replace(self.url, _URL)

    async def _python(self, source: str) -> str:
        code = compile(source, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with redirect_stdout(StringIO()) as printed:
            if "asyncio.run(" in source:  # a whole program, which starts its own loop
                await asyncio.to_thread(exec, code, self.names)
            else:
                result = eval(code, self.names)
                if inspect.isawaitable(result):
                    await result
        return self._page(printed.getvalue())

    async def _console(self, source: str) -> None:
        """Run commands; the lines after a command are its output."""
        for command, expected in _commands(source):
            output = self._page(await self._command_line(command))
            if expected:
                assert normalized(output) == normalized(expected), command

    async def _command_line(self, line: str) -> str:
        output = ""
        for words in _parts(line):
            environment = dict(self.environment)
            while "=" in words[0]:
                name, _, value = words.pop(0).partition("=")
                environment[name] = value
            target = words.pop() if ">" in words else ""
            assert words[0] == "redis-memory", f"only redis-memory can be run, not {words[0]}"
            arguments = [word for word in words[1:] if word != ">"]
            result = await asyncio.to_thread(CliRunner().invoke, cli.app, arguments, env=environment)
            refused = result.exception
            if refused and not isinstance(refused, SystemExit | MemoryServiceError):
                raise refused
            expects_failure = "exit code" in line
            assert (refused is None) != expects_failure, f"{line}: {result.output}{refused!r}"
            if target:
                _keep(target, result.stdout)
            output += "" if target else result.stdout
            output += _refusal_text(refused) if isinstance(refused, MemoryServiceError) else ""
        return output


def _keep(name: str, text: str) -> None:
    """Write a file into the page's folder."""
    Path(name).write_text(text)


def _commands(source: str) -> Iterator[tuple[str, str]]:
    """Return each command and the output below it."""
    for part in re.split(r"^\$ ", source, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def _refusal_text(refused: MemoryServiceError) -> str:
    """Return an error as the program prints it."""
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
