"""Checks files of installed packages against the hashes of their publication."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from memory_core.errors import MemoryServiceError


class FileAltered(MemoryServiceError):
    """A packaged file does not have a SHA-256 of its publication."""

    code = "file_altered"


def verify_file(path: Path, published: Collection[str], packages: str) -> None:
    """Check the SHA-256 of a file. `published` has one hash per platform, `packages` is what to reinstall.

    Raises:
        FileAltered: none of the hashes matches.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found not in published:
        raise FileAltered(
            f"{path} was altered: expected SHA-256 {' or '.join(published)}, found {found}",
            hint=f"reinstall it: pip install --force-reinstall --no-deps {packages}",
        )
