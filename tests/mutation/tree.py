"""A copy of the source and tests, in which one thing at a time is broken. The checkout stays untouched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("server", "embedder", "redis", "schemas", "tests", "docs", "examples", "pyproject.toml", "README.md")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "node_modules", ".hypothesis", "screenshots")
_INVALID_SELECTION = ("ERROR: not found", "ERROR: file or directory not found", "no tests ran")
Replacements = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Tree:
    """One copy."""

    root: Path

    @classmethod
    def copied(cls, folder: Path) -> Tree:
        """Copy the checkout."""
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=_LEFT_OUT)
            else:
                shutil.copy(source, folder / name)
        return cls(folder)

    @contextmanager
    def changed(self, path: str, code: str) -> Generator[None]:
        """Replace the content of a file within the block."""
        file = self.root / path
        original = file.read_text()
        file.write_text(code)
        try:
            yield
        finally:
            file.write_text(original)

    def fails(self, tests: Iterable[str], seconds: float) -> str:
        """Run tests until one fails; return its name, or an empty string if all pass.

        Raises:
            RuntimeError: there are no such tests.
        """
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "--no-header", "-rfE"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=self.root,
            env={
                **os.environ,
                "PYTHONPATH": f"{self.root}/server:{self.root}/embedder",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return "the tests did not end"
        finally:
            _end_all(process)
        if process.returncode == 0:
            return ""
        if any(words in output for words in _INVALID_SELECTION) and "Error while loading conftest" not in output:
            raise RuntimeError(output)
        named = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return named[0].split(" - ")[0] if named else (output.strip().splitlines() or ["it ended without output"])[-1]


def _end_all(process: subprocess.Popen[str]) -> None:
    """Kill everything the tests left running: they have their own process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def broken(code: str, replacements: Replacements) -> str:
    """Replace texts, each of which must occur exactly once.

    Raises:
        ValueError: one does not.
    """
    for old, new in replacements:
        if code.count(old) != 1:
            raise ValueError(f"{code.count(old)} occurrences of {old!r}")
        code = code.replace(old, new)
    return code
