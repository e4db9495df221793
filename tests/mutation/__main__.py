"""`python -m mutation planted` plants the bugs of planted_bugs.py; `sample` mutates the parts of targets.py by chance.

Both exit with 1 if a change was not seen by its tests (for `sample`: below the least share).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from support.planted_bugs import BUGS

from mutation import lua, python
from mutation.equivalents import EQUIVALENT
from mutation.targets import TARGETS
from mutation.tree import ROOT, Tree, broken

LEAST_SHARE, BASELINE_SECONDS = 0.9, 900.0


@dataclass(frozen=True, slots=True)
class Change:
    """A file with another text, the tests that should see it, and what it is called."""

    name: str
    path: str
    code: str
    tests: tuple[str, ...]


def main() -> int:
    """Run what is asked for and give the exit code."""
    parser = argparse.ArgumentParser(prog="mutation", description=__doc__)
    parser.add_argument("what", choices=["planted", "sample"])
    parser.add_argument("--only", default="", help="bugs whose name has this, or one target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=30, help="mutants of each target")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600.0, help="after which tests count as failed")
    options = parser.parse_args()
    changes = _planted(options.only) if options.what == "planted" else _sampled(options)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        trees = [Tree.grown(_made(Path(folder) / str(number))) for number in range(options.at_once)]
        _check_unbroken(trees[0], changes)
        unseen = _run(trees, changes, options.seconds)
    print(f"{len(changes) - len(unseen)} of {len(changes)} seen, {time.monotonic() - started:.0f} s")
    for change in unseen:
        print(f"NOT SEEN {change.path}: {change.name}")
    if options.what == "planted":
        return int(bool(unseen))
    return _judge(changes, unseen)


def _judge(changes: Sequence[Change], unseen: Sequence[Change]) -> int:
    """Tell the share of each target; equivalent mutants do not count."""
    code = 0
    for name in dict.fromkeys(change.name.partition(" ")[0] for change in changes):
        of_it = [change for change in changes if change.name.startswith(f"{name} ")]
        missed = sum(change in unseen for change in of_it)
        share = 1 - missed / len(of_it)
        code |= share < LEAST_SHARE
        print(f"{name}: {len(of_it) - missed} of {len(of_it)}, {share:.0%}")
    return code


def _planted(only: str) -> list[Change]:
    return [
        Change(name, bug.path, broken((ROOT / bug.path).read_text(), bug.replacements), bug.tests)
        for name, bug in BUGS.items()
        if only in name
    ]


def _sampled(options: argparse.Namespace) -> list[Change]:
    """Choose mutants of each target by chance, the same for the same seed and source."""
    changes: list[Change] = []
    for name, target in TARGETS.items():
        if options.only not in {"", name}:
            continue
        made = [
            Change(f"{name} {path}:{mutant.line}: {mutant.description}", path, mutant.code, target.tests)
            for path in target.files
            for mutant in (python if path.endswith(".py") else lua).mutants((ROOT / path).read_text())
        ]
        chosen = random.Random(f"{options.seed} {name}").sample(made, min(options.number, len(made)))
        different = [change for change in chosen if (change.path, change.name.split(": ", 1)[1]) not in EQUIVALENT]
        print(f"{name}: {len(chosen)} of {len(made)} mutants, {len(chosen) - len(different)} of them equivalent")
        changes += different
    return changes


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _check_unbroken(tree: Tree, changes: Sequence[Change]) -> None:
    """Run all the tests on the source as it is.

    Raises:
        SystemExit: one fails already.
    """
    tests = dict.fromkeys(test for change in changes for test in change.tests)
    if failed := tree.fails(tests, BASELINE_SECONDS):
        raise SystemExit(f"without any change already: {failed}")


def _run(trees: Sequence[Tree], changes: Sequence[Change], seconds: float) -> list[Change]:
    """Make each change in some tree and run its tests; give those that nothing saw."""
    free: SimpleQueue[Tree] = SimpleQueue()
    for tree in trees:
        free.put(tree)

    def one(change: Change) -> str:
        tree, began = free.get(), time.monotonic()
        try:
            with tree.changed(change.path, change.code):
                seen = tree.fails(change.tests, seconds)
        finally:
            free.put(tree)
        print(f"{time.monotonic() - began:4.0f} s  {change.name}\n        {seen or 'NOT SEEN'}", flush=True)
        return seen

    work: Callable[[Change], str] = one
    with ThreadPoolExecutor(len(trees)) as threads:
        return [change for change, seen in zip(changes, threads.map(work, changes), strict=True) if not seen]


if __name__ == "__main__":
    sys.exit(main())
