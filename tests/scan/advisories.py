"""Fails where a package that is installed has a published advisory that nobody answered.

Where no advisory database can be reached it says so and passes: that is the network's state, not the code's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ANSWERED: dict[str, str] = {}
"""Advisory id → why it does not concern this project; docs/decisions/0016-scans.md says more."""


def audit() -> list[dict[str, Any]]:
    """Ask for the advisories of everything installed here, but for the project itself.

    Raises:
        SystemExit: pip-audit gave no report.
    """
    command = [str(Path(sys.executable).with_name("pip-audit")), "--local", "--skip-editable", "--format", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=300)
    try:
        return json.loads(done.stdout)["dependencies"]
    except ValueError:
        sys.exit(f"pip-audit gave no report:\n{done.stderr[-2000:]}")


def main() -> int:
    """Report; 1 where an advisory is unanswered."""
    dependencies = audit()
    looked_up = [package for package in dependencies if "vulns" in package]
    found = [
        (package["name"], package["version"], hole["id"])
        for package in looked_up
        for hole in package["vulns"]
        if hole["id"] not in ANSWERED
    ]
    for name, version, hole in found:
        print(f"{name} {version}: {hole}")
    if not looked_up:
        print("SKIPPED: no advisory database can be reached from here")
    else:
        print(f"{len(looked_up)} of {len(dependencies)} packages looked up, {len(found)} unanswered advisories")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
