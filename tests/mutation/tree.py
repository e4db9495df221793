"""A copy of the source and its tests in which one thing at a time is broken; the checkout itself is never touched."""

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
_ASKED_WRONGLY = ("ERROR: not found", "ERROR: file or directory not found", "no tests ran")
Replacements = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Tree:
    """One copy."""

    root: Path

    @classmethod
    def grown(cls, folder: Path) -> Tree:
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
        """Give a file another text for a while."""
        file = self.root / path
        kept = file.read_text()
        file.write_text(code)
        try:
            yield
        finally:
            file.write_text(kept)

    def fails(self, tests: Iterable[str], seconds: float) -> str:
        """Run tests until one fails; name what failed, nothing if none did.

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
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return "the tests did not end"
        finally:
            _end_all(process)
        if process.returncode == 0:
            return ""
        if any(words in said for words in _ASKED_WRONGLY) and "Error while loading conftest" not in said:
            raise RuntimeError(said)
        named = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return named[0].split(" - ")[0] if named else (said.strip().splitlines() or ["it ended without a word"])[-1]


def _end_all(process: subprocess.Popen[str]) -> None:
    """End whatever the tests left running: they are a process group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def broken(code: str, replacements: Replacements) -> str:
    """Replace texts that occur exactly once each.

    Raises:
        ValueError: one does not.
    """
    for old, new in replacements:
        if code.count(old) != 1:
            raise ValueError(f"{code.count(old)} places say {old!r}")
        code = code.replace(old, new)
    return code
