"""Finds `redis/` and `schemas/`: beside the packages in a checkout, inside this package in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_ROOTS = (_PACKAGE / "_data", _PACKAGE.parents[1])


def resource(relative: str) -> Path:
    """Return the path of packaged data such as `redis/functions`. Raises FileNotFoundError if it is missing."""
    for root in _ROOTS:
        path = root / relative
        if path.exists():
            return path
    raise FileNotFoundError(f"{relative} is missing from this installation of redis-memory-gpu; reinstall it")
