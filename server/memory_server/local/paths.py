"""The files of the embedded Redis, and checks that other users cannot reach them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

from platformdirs import user_data_path

from memory_core.crypto.keyring import new_key
from memory_core.crypto.secret_files import (
    is_open_to_others,
    narrow,
    open_private,
    private_folder,
    read_private,
    write_private,
)
from memory_core.errors import InvalidArgument, UnsafeStart, echo

SOCKET_LIMIT = 103  # bytes of sun_path: 107 on Linux, 103 on macOS
LOG_LIMIT = 5 << 20
_SOCKET_FOLDER = "redis-memory"
APPEND_ONLY = "appendonlydir"
"""The folder of Redis's append-only file."""
_PASSWORD = "password"  # noqa: S105 # nosec B105 - the name of a file
_MOST_NEIGHBOURS = 1000

_Record = TypeVar("_Record", "State", "Address")


@dataclass(frozen=True)
class _File:
    """A file in the data directory."""

    name: str

    def __get__(self, paths: LocalPaths, owner: type[LocalPaths]) -> Path:
        return paths.data_dir / self.name


@dataclass(frozen=True)
class LocalPaths:
    """The files of one data directory. All are private to the user."""

    data_dir: Path

    users_lock = _File("users.lock")  # every server process that uses this Redis holds it shared
    supervisor_lock = _File("supervisor.lock")  # the supervisor holds it exclusively
    redis_lock = _File("redis.lock")  # the Redis process holds it: two processes must never write one AOF
    state = _File("state.json")  # what the supervisor runs now (a `State`); missing while it starts and stops
    address = _File("address.json")  # the last `Address`, reused after a restart so that clients find Redis again
    stopped = _File("stopped")  # exists after Redis was asked to stop, until the next `attach`
    password = _File(_PASSWORD)  # the generated password, one line
    integrity_key = _File("integrity.key")  # the generated key of integrity codes, for use without a master key
    config = _File("redis.runtime.conf")  # the rendered redis.conf; it holds the password
    redis_log = _File("redis.log")
    sidecar_log = _File("sidecar.log")
    supervisor_log = _File("supervisor.log")
    servers = _File("servers")  # a file for each HTTP server that runs: see `servers.py`

    @property
    def socket_name(self) -> str:
        """A short name derived from the data directory, whose path may exceed the limit of socket paths."""
        return hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12] + ".sock"


@dataclass(frozen=True)
class Address:
    """Where Redis listens: a Unix socket and a loopback port."""

    socket: str
    port: int


@dataclass(frozen=True)
class State:
    """What the supervisor runs now. Contains no secret: `transport_keys` are ids of the sidecar's keys."""

    supervisor_pid: int
    socket: str
    port: int
    model: str
    started_at: float
    redis_origin: str = ""
    redis_pid: int | None = None
    redis_version: str | None = None
    redis_restarts: int = 0
    sidecar_pid: int | None = None
    sidecar_restarts: int = 0
    sidecar_error: str | None = None
    transport_keys: Sequence[str] = ()


def locate(data_dir: Path | None) -> LocalPaths:
    """Return the files of `data_dir`, by default in the user data directory of the platform. Creates nothing."""
    if data_dir is None:
        data_dir = user_data_path("redis-memory", appauthor=False)
    return LocalPaths(data_dir.expanduser().resolve())


def check_folder(paths: LocalPaths) -> None:
    """Refuse a data directory that is a file or cannot be entered. Raises InvalidArgument, UnsafeStart."""
    folder = paths.data_dir
    try:
        if folder.exists() and not folder.is_dir():
            raise InvalidArgument(f"the data directory {folder} is a file", hint="name a folder")
        if folder.exists():
            next(folder.iterdir(), None)
    except OSError as error:
        raise UnsafeStart(f"cannot use the data directory {folder}: {error.strerror}") from error


def holds_memory(folder: Path) -> bool:
    """Whether an embedded Redis ever ran on a folder."""
    try:
        return (folder / _PASSWORD).is_file() or (folder / APPEND_ONLY).is_dir()
    except OSError:
        return False


def known_memories(paths: LocalPaths) -> list[Path]:
    """Return data directories that hold a memory: the default one, and the neighbours of a missing one."""
    folders = [locate(None).data_dir]
    with suppress(OSError):
        folders += sorted(islice((one for one in paths.data_dir.parent.iterdir() if one.is_dir()), _MOST_NEIGHBOURS))
    return list(dict.fromkeys(folder for folder in folders if folder != paths.data_dir and holds_memory(folder)))


def prepare(data_dir: Path | None) -> LocalPaths:
    """Create the private data directory and return its files. An existing one and its files lose wider permissions.

    Raises:
        UnsafeStart: it belongs to another user, other users may write to it, or it cannot be created.
    """
    paths = locate(data_dir)
    folder = paths.data_dir
    check_folder(paths)
    try:
        if folder.exists() and folder.stat().st_mode & 0o022:
            # Others may have put files there, which a narrower mode would not remove.
            raise UnsafeStart(f"other users may write to the data directory {folder}", hint=f"chmod 700 {folder}")
        _check_purpose(folder)
        private_folder(folder)
        narrow(_written_files(folder))
    except OSError as error:
        raise UnsafeStart(f"cannot use the data directory {folder}: {error.strerror}") from error
    return paths


def _check_purpose(folder: Path) -> None:
    """Refuse a folder of other things that other users may need. Raises UnsafeStart, OSError."""
    if not folder.exists() or not is_open_to_others(folder) or not any(folder.iterdir()):
        return
    if not any(os.path.lexists(path) for path in _written_files(folder)):
        raise UnsafeStart(f"{folder} holds other files than a memory", hint="choose an empty or a new folder")


def _written_files(folder: Path) -> Iterator[Path]:
    """Yield what this product and Redis write into a data directory, and nothing else that may be there."""
    names = {file.name for file in vars(LocalPaths).values() if isinstance(file, _File)}
    logs = {f"{name}.1" for name in names if name.endswith(".log")}
    yield from (folder / name for name in (*names, *logs, "redis.pid", "dump.rdb", APPEND_ONLY))
    append_only = folder / APPEND_ONLY
    if append_only.is_dir():
        yield from append_only.iterdir()


def choose_socket(paths: LocalPaths, last: Address | None = None) -> Path:
    """Return the path of the socket, the last one if possible, in a private folder. Raises UnsafeStart without one."""
    problem = UnsafeStart("no directory is usable for the Unix socket", hint="set XDG_RUNTIME_DIR or TMPDIR")
    for folder in _socket_dirs(paths, last):
        path = folder / paths.socket_name
        if len(os.fsencode(path)) > SOCKET_LIMIT:
            continue
        try:
            make_private_dir(folder)
        except UnsafeStart as error:
            problem = error
            continue
        return path
    raise problem


def _socket_dirs(paths: LocalPaths, last: Address | None) -> Iterator[Path]:
    # Processes of one user differ in XDG_RUNTIME_DIR and TMPDIR, so the recorded directory comes first. The name of
    # the socket prevents that a copied data directory takes over the socket of its original.
    # A folder of another name is not ours to make private: the file may come with a copied data directory.
    if last is not None and (path := Path(last.socket)).name == paths.socket_name and _is_ours(path.parent):
        yield path.parent
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_own_dir(Path(runtime)):
        yield Path(runtime) / _SOCKET_FOLDER
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 # nosec B108
        yield Path(parent) / f"{_SOCKET_FOLDER}-{os.geteuid()}"
    # Another user took the names above. The folder is found again by the recorded address.
    yield Path(tempfile.gettempdir()) / f"{_SOCKET_FOLDER}-{os.geteuid()}-{secrets.token_hex(6)}"


def _is_ours(folder: Path) -> bool:
    return folder.is_absolute() and re.fullmatch(rf"{_SOCKET_FOLDER}(-{os.geteuid()}(-\w+)?)?", folder.name) is not None


def _is_own_dir(folder: Path) -> bool:
    try:
        return folder.is_absolute() and folder.is_dir() and folder.stat().st_uid == os.geteuid()
    except OSError:
        return False


def make_private_dir(folder: Path) -> None:
    """Create a private folder, or accept the user's. Raises UnsafeStart for a link or another user's folder."""
    try:
        private_folder(folder)
    except OSError as error:
        raise UnsafeStart(f"cannot create {folder}: {error.strerror}") from error


def password_of(paths: LocalPaths) -> str:
    """Read the password; the supervisor generates it on its first start."""
    if not paths.password.exists() or not read_private(paths.password).strip():
        write_private(paths.password, secrets.token_urlsafe(32) + "\n")
    return read_private(paths.password).strip()


def make_integrity_key(paths: LocalPaths) -> None:
    """Generate the key of integrity codes if it is missing."""
    if not paths.integrity_key.exists():
        write_private(paths.integrity_key, new_key() + "\n")


def write_record(path: Path, record: State | Address) -> None:
    write_private(path, json.dumps(asdict(record), indent=1) + "\n")


def read_state(paths: LocalPaths) -> State | None:
    """Return what the supervisor runs; None if it runs nothing."""
    return _read(paths.state, State)


def read_address(paths: LocalPaths) -> Address | None:
    return _read(paths.address, Address)


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    """Read a record. Ignores fields of newer releases. Raises UnsafeStart: it is no plain file of the user."""
    try:
        found: Any = json.loads(read_private(path))
        if not isinstance(found, dict):
            return None
        known = cast("dict[str, Any]", found)
        return kind(**{field.name: known[field.name] for field in fields(kind) if field.name in known})
    except (OSError, ValueError, TypeError):
        return None


def open_log(path: Path) -> int:
    """Open a log for appending. A log above 5 MB is moved to `<name>.1` first."""
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_name(path.name + ".1"))
    return open_private(path, os.O_WRONLY | os.O_APPEND)


def log_tail(path: Path, lines: int = 3, offset: int = 0) -> str:
    """Return the last lines of a log, after `offset` bytes."""
    try:
        with path.open("rb") as file:
            file.seek(max(offset, path.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def quoted(path: Path) -> str:
    return echo(str(path))
