"""Private files: secrets that are read, and everything that is written.

All code that creates or opens a file for writing does it here: only the user can read it, and a link or another user's
file in its place is refused.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from memory_core.errors import UnsafeStart

if TYPE_CHECKING:
    from pydantic import SecretStr

OTHERS = 0o077
"""The permissions of all users but the owner."""
_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)  # a FIFO must not stop the process
_SAFE = _NO_LINK | _NO_WAIT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def cannot_read(setting: str, error: OSError | ValueError) -> UnsafeStart:
    """Return the error for an unreadable secret file. It omits the path, which may be a secret set by mistake."""
    reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return UnsafeStart(f"cannot read {setting}: {reason}", hint="check its path and permissions")


def secret_of(value: SecretStr | None, path: Path | None, name: str) -> str | None:
    """Return a secret; None if it is not set. Raises UnsafeStart if it is set twice, or its file is unusable."""
    if value is not None and path is not None:
        raise UnsafeStart(f"both {name} and {name}_file are set", hint="keep one")
    if path is None:
        return None if value is None else value.get_secret_value()
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise cannot_read(f"{name}_file", error) from None
    if not text:
        raise UnsafeStart(f"{name}_file is empty", hint="write the secret into it, or leave the setting out")
    return text


def restrict_umask() -> None:
    """Make everything private that this process and its children create. Every program calls it first."""
    os.umask(OTHERS)


def is_open_to_others(path: Path, who: int = OTHERS) -> bool:
    """Whether a file gives other users any permission in the mask `who`. Raises OSError."""
    return sys.platform != "win32" and bool(path.stat().st_mode & who)


def make_folder(folder: Path) -> None:
    """Create a folder that only the user can enter, unless it exists. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def private_folder(folder: Path) -> None:
    """Create a folder that only the user can enter, or narrow the user's. Raises UnsafeStart, OSError."""
    make_folder(folder)
    narrow([folder])


def narrow(paths: Iterable[Path]) -> None:
    """Take the permissions of other users from files and folders that exist.

    Raises:
        UnsafeStart: one is a link, a device or a pipe, or belongs to another user. OSError.
    """
    for path in paths:
        try:
            info = path.lstat()
        except FileNotFoundError:
            continue
        _check(path, info)
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
            raise _special(path)  # a pipe would stop its reader
        if info.st_mode & OTHERS and sys.platform != "win32":
            path.chmod(stat.S_IMODE(info.st_mode) & ~OTHERS)


def open_private(path: Path, flags: int = os.O_RDWR) -> int:
    """Open a file of the user, created if it is missing, and return its descriptor.

    Raises:
        UnsafeStart: it is a link, has several names, or belongs to another user. OSError.
    """
    fd = _open_checked(path, flags | os.O_CREAT)
    try:
        info = os.fstat(fd)
        if info.st_mode & OTHERS and sys.platform != "win32":
            os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_private(path: Path, most: int = -1) -> str:
    """Read at most so many characters of a text file of the user. Raises as `open_private`; UnicodeDecodeError."""
    with open(_open_checked(path, os.O_RDONLY), encoding="utf-8") as file:
        return file.read(most)


def private_file(path: Path) -> BinaryIO:
    """Open a file of the user to read and write it, created if it is missing. Raises as `open_private`."""
    return open(open_private(path), "r+b")


def create_private(path: Path) -> int:
    """Create a file and return its descriptor. Raises FileExistsError, OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o600)


def publish(draft: Path, path: Path) -> None:
    """Give a finished file its name. Raises UnsafeStart if that is a link or a device, OSError."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise _special(path)
    draft.replace(path)


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """Write a file that replaces `path` as a whole when the block ends. After an error nothing is left of it.

    Raises:
        UnsafeStart: `path` is a link or a device. OSError.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(create_private(draft), "wb") as file:
            yield file
        publish(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole. Raises as `replacing`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def _open_checked(path: Path, flags: int) -> int:
    """Open a plain file of the user. Raises UnsafeStart, OSError."""
    try:
        fd = os.open(path, flags | _SAFE, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _foreign(path) from None
        raise _special(path) if error.errno == errno.ENXIO else error from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
            raise _special(path)
        _check(path, info)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(path: Path, info: os.stat_result) -> None:
    if stat.S_ISLNK(info.st_mode) or (sys.platform != "win32" and info.st_uid != os.geteuid()):
        raise _foreign(path)


def _foreign(path: Path) -> UnsafeStart:
    return UnsafeStart(f"{path} is a link or belongs to another user", hint="remove it, or choose another place")


def _special(path: Path) -> UnsafeStart:
    return UnsafeStart(f"{path} is not a plain file of one name", hint="remove it, or choose another place")
