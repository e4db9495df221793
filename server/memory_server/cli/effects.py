"""What each command does to a memory: it reads, changes what exists, or creates. The single source of that."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Effect(StrEnum):
    """A command's effect, which decides what must exist before it runs."""

    LOCAL = "local"
    """Uses no memory."""
    READ = "read"
    """Needs a memory whose Redis runs, and a namespace that exists. Creates nothing and starts nothing."""
    CHANGE = "change"
    """Needs a memory and a namespace that exist. Starts the memory's Redis if it does not run."""
    CREATE = "create"
    """May create the memory and the namespace."""


_BY_EFFECT: Final = {
    Effect.LOCAL: "settings|reference|keys new|keys transport|connect|stop",
    Effect.READ: (
        "status|doctor|search|show|duplicates|clusters|dashboard|export|namespaces list|agents list|agents tokens|"
        "tasks list|tasks show|grants list|quarantine list|integrity verify|audit verify|audit export|audit tail"
    ),
    Effect.CHANGE: (
        "purge|reindex|agents revoke|agents transfer|tasks requeue|tasks cancel|grants revoke|keys rotate|"
        "keys rewrap|quarantine add|quarantine remove|integrity adopt"
    ),
    Effect.CREATE: "serve|bench|import|agents token",
}
EFFECTS: Final = {tuple(path.split()): effect for effect, paths in _BY_EFFECT.items() for path in paths.split("|")}
"""The effect of each command, by its words. `reindex --status` and the like only read.

`import --dry-run` also works before there is a memory, like the import that it tries. It creates no namespace.
"""
