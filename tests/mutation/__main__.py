"""`python -m mutation planted` plants the bugs of planted_bugs.py; `sample` makes random mutants of targets.py.

Both exit with 1 if tests did not detect a change (for `sample`: fewer than the minimum share).
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

MINIMUM_SHARE, BASELINE_SECONDS = 0.9, 900.0


@dataclass(frozen=True, slots=True)
class Change:
    """A changed file, the tests that should fail, and a name."""

    name: str
    path: str
    code: str
    tests: tuple[str, ...]


def main() -> int:
    """Run the chosen command and return the exit code."""
    parser = argparse.ArgumentParser(prog="mutation", description=__doc__)
    parser.add_argument("what", choices=["planted", "sample"])
    parser.add_argument("--only", default="", help="bugs whose name contains this, or one target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=30, help="mutants per target")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600.0, help="timeout after which tests count as failed")
    options = parser.parse_args()
    changes = _planted(options.only) if options.what == "planted" else _sampled(options)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        trees = [Tree.copied(_new_folder(Path(folder) / str(number))) for number in range(options.at_once)]
        _check_baseline(trees[0], changes)
        undetected = _run(trees, changes, options.seconds)
    print(f"{len(changes) - len(undetected)} of {len(changes)} detected, {time.monotonic() - started:.0f} s")
    for change in undetected:
        print(f"NOT DETECTED {change.path}: {change.name}")
    if options.what == "planted":
        return int(bool(undetected))
    return _judge(changes, undetected)


def _judge(changes: Sequence[Change], undetected: Sequence[Change]) -> int:
    """Print the share of each target. Equivalent mutants do not count."""
    code = 0
    for name in dict.fromkeys(change.name.partition(" ")[0] for change in changes):
        of_target = [change for change in changes if change.name.startswith(f"{name} ")]
        missed = sum(change in undetected for change in of_target)
        share = 1 - missed / len(of_target)
        code |= share < MINIMUM_SHARE
        print(f"{name}: {len(of_target) - missed} of {len(of_target)}, {share:.0%}")
    return code


def _planted(only: str) -> list[Change]:
    return [
        Change(name, bug.path, broken((ROOT / bug.path).read_text(), bug.replacements), bug.tests)
        for name, bug in BUGS.items()
        if only in name
    ]


def _sampled(options: argparse.Namespace) -> list[Change]:
    """Choose random mutants of each target; the same seed and source give the same mutants."""
    changes: list[Change] = []
    for name, target in TARGETS.items():
        if options.only not in {"", name}:
            continue
        mutants = [
            Change(f"{name} {path}:{mutant.line}: {mutant.description}", path, mutant.code, target.tests)
            for path in target.files
            for mutant in (python if path.endswith(".py") else lua).mutants((ROOT / path).read_text())
        ]
        chosen = random.Random(f"{options.seed} {name}").sample(mutants, min(options.number, len(mutants)))
        different = [change for change in chosen if (change.path, change.name.split(": ", 1)[1]) not in EQUIVALENT]
        print(f"{name}: {len(chosen)} of {len(mutants)} mutants, {len(chosen) - len(different)} of them equivalent")
        changes += different
    return changes


def _new_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _check_baseline(tree: Tree, changes: Sequence[Change]) -> None:
    """Run all tests on the unchanged source.

    Raises:
        SystemExit: a test fails.
    """
    tests = dict.fromkeys(test for change in changes for test in change.tests)
    if failed := tree.fails(tests, BASELINE_SECONDS):
        raise SystemExit(f"fails without any change: {failed}")


def _run(trees: Sequence[Tree], changes: Sequence[Change], seconds: float) -> list[Change]:
    """Make each change in a free tree and run its tests; return the changes that no test detected."""
    free: SimpleQueue[Tree] = SimpleQueue()
    for tree in trees:
        free.put(tree)

    def test_change(change: Change) -> str:
        tree, began = free.get(), time.monotonic()
        try:
            with tree.changed(change.path, change.code):
                failed_test = tree.fails(change.tests, seconds)
        finally:
            free.put(tree)
        print(f"{time.monotonic() - began:4.0f} s  {change.name}\n        {failed_test or 'NOT DETECTED'}", flush=True)
        return failed_test

    work: Callable[[Change], str] = test_change
    with ThreadPoolExecutor(len(trees)) as threads:
        return [
            change for change, failed_test in zip(changes, threads.map(work, changes), strict=True) if not failed_test
        ]


if __name__ == "__main__":
    sys.exit(main())
