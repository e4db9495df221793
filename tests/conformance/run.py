"""Runs the official MCP conformance suite against the server, for both protocol eras.

Two servers share one real embedded Redis and sidecar: the product as `redis-memory serve` starts it, for scenarios
that need nothing else, and the same server with the suite's fixtures, for all scenarios.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from support.node import NODE, install
from support.product import SERVE, serving, shown_on_failure, stop_redis

HERE = Path(__file__).parent
SUITE = HERE / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
RUN_SECONDS = 180.0

STATEFUL, STATELESS = "2025-11-25", "2026-07-28"
ALL_VERSIONS = ("2025-06-18", STATEFUL, STATELESS)
BOTH_ERAS = ["tools-list", "resources-list", "prompts-list", "server-sse-multiple-streams", "dns-rebinding-protection"]
FIXTURE_FREE = {
    STATEFUL: [*BOTH_ERAS, "server-initialize", "server-session-lifecycle", "ping"],
    STATELESS: [*BOTH_ERAS, "caching", "sep-2164-resource-not-found", "http-header-validation"],
}
"""Scenarios that need none of the suite's tools, resources and prompts."""


@dataclass(slots=True)
class SuiteRun:
    """The result of one run of the suite."""

    name: str
    scenarios: dict[str, list[dict[str, str]]] = field(default_factory=dict[str, list[dict[str, str]]])
    failures: list[str] = field(default_factory=list[str])

    def line(self) -> str:
        """The counts."""
        checks = [check["status"] for checks in self.scenarios.values() for check in checks]
        failed = [name for name, checks in self.scenarios.items() if any(map(_is_bad, checks))]
        counts = ", ".join(f"{checks.count(status)} {status.lower()}" for status in dict.fromkeys(sorted(checks)))
        verdict = "FAIL" if self.failures else "ok"
        expected = f" (not passed: {', '.join(failed)})" if failed else ""
        passed = len(self.scenarios) - len(failed)
        return f"{verdict:4} {self.name:22} {passed}/{len(self.scenarios)} scenarios{expected}; checks: {counts}"


def main() -> int:
    """Run everything and return the exit code."""
    signal.signal(signal.SIGTERM, _exit)
    install(HERE)
    started = time.monotonic()
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="conformance-")))
        data = folder / "data"
        parts.callback(stop_redis, data)
        log = parts.enter_context((folder / "servers.log").open("w+b"))
        parts.enter_context(shown_on_failure(log))
        product = parts.enter_context(serving(SERVE, data, log))
        fixtures = parts.enter_context(serving([sys.executable, str(HERE / "server.py")], data, log))
        runs = [_run_chosen(product, version, names, folder) for version, names in FIXTURE_FREE.items()]
        runs += [_run_all(fixtures, version, folder) for version in ALL_VERSIONS]
    for run in runs:
        print("\n".join([run.line(), *run.failures]))
    print(f"{time.monotonic() - started:.0f} s")
    return int(any(run.failures for run in runs))


def _exit(number: int, _: FrameType | None) -> None:
    """Exit through an exception, so that the servers are stopped."""
    raise SystemExit(128 + number)


def _run_chosen(url: str, version: str, scenarios: Sequence[str], folder: Path) -> SuiteRun:
    run = SuiteRun(f"product {version}")
    for scenario in scenarios:
        _run(run, url, version, ["--scenario", scenario], folder)
    return run


def _run_all(url: str, version: str, folder: Path) -> SuiteRun:
    run = SuiteRun(f"with fixtures {version}")
    _run(run, url, version, ["--suite", "all"], folder)
    return run


def _run(run: SuiteRun, url: str, version: str, which: Sequence[str], folder: Path) -> None:
    """Run the suite once and record its results. The suite itself compares them with the expected failures."""
    results = folder / "results"
    options = ["--url", url, "--spec-version", version, "--output-dir", str(results), *which]
    expected = ["--expected-failures", str(HERE / "expected-failures.yml")]
    try:
        ended = subprocess.run(
            [str(NODE), str(SUITE), "server", *options, *expected], capture_output=True, text=True, timeout=RUN_SECONDS
        )
    except subprocess.TimeoutExpired:
        run.failures.append(f"  {' '.join(which)}: not done within {RUN_SECONDS:.0f} s")
        return
    ran = {_scenario_of(file): json.loads(file.read_text()) for file in sorted(results.glob("*/checks.json"))}
    shutil.rmtree(results, ignore_errors=True)
    run.scenarios |= ran
    if ended.returncode or not ran:
        bad = [(name, check) for name, checks in ran.items() for check in checks if _is_bad(check)]
        run.failures += [
            f"  {name}: {check['status']} {check['id']}: {check.get('errorMessage', '')}" for name, check in bad
        ]
        run.failures += [f"  | {line}" for line in _verdict(ended.stdout + ended.stderr)]


def _verdict(output: str) -> list[str]:
    """The suite's report on expected failures, or else its last lines."""
    lines = [re.sub(r"\x1b\[\d+m", "", line) for line in output.splitlines() if line.strip()]
    starts = [n for n, line in enumerate(lines) if line.startswith(("Expected fail", "Stale base", "Unexpected fail"))]
    return lines[starts[0] :] if starts else lines[-12:]


def _scenario_of(checks: Path) -> str:
    match = re.fullmatch(r"server-(.+)-\d{4}-\d\d-\d\dT.*", checks.parent.name)
    return match[1] if match else checks.parent.name


def _is_bad(check: dict[str, str]) -> bool:
    return check["status"] in {"FAILURE", "WARNING"}


if __name__ == "__main__":
    sys.exit(main())
