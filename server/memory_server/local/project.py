"""Derives a project's namespace from its folder, so that one client configuration serves many projects.

A repository is identified by the address of its remote, so its clones and worktrees share a namespace and forks of
different owners do not. Without a remote the path identifies it. Reads files only: no program is run, no hook and no
setting of the repository takes effect.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from memory_core.errors import InvalidArgument, MemoryServiceError, plain_line
from memory_core.records.bounded_files import opened
from memory_core.records.names import to_name

_MOST_BYTES = 1 << 20
_MOST_PARENTS = 100
_MOST_URL = 4096
_MOST_ENCODINGS = 8
_NAME_LENGTH = 50
"""Readable characters of a namespace, before `-` and eight digits that make it unique."""
_STANDARD_PORTS = {"http": 80, "https": 443}
_SCP = re.compile(r"(?:[^@/\s]+@)?(?P<host>\[[^\]/]+\]|[^:/\s\[]+):(?P<path>.+)")
_SECRET = re.compile(r"(?:^|(?<=/))[^/]*@")  # a malformed URL may have a user and a password in its path
_SECTION = re.compile(r'\[\s*(?P<name>[A-Za-z0-9.-]+)(?:\s+"(?P<sub>(?:[^"\\]|\\.)*)")?\s*\]')


@dataclass(frozen=True, slots=True)
class Project:
    """A project: its namespace, and what that was derived from, without credentials."""

    namespace: str
    source: str


def find_project(folder: Path) -> Project:
    """Return the project that a folder belongs to: its Git repository, else the folder itself.

    Raises:
        InvalidArgument: the folder is no project: the file system's root or the user's home.
    """
    folder = folder.resolve()
    for candidate in (folder, *list(folder.parents)[:_MOST_PARENTS]):
        common = _git_folder(candidate / ".git")
        if common is not None:
            return _of_repository(candidate, common)
    if folder in {Path(folder.anchor), Path.home().resolve()}:
        hint = "start the client in the folder of a project, or name the namespace with --namespace"
        raise InvalidArgument(f"{folder} is not a project", hint=hint)
    return _named(folder.name, f"path {folder}", f"the folder {folder}")


def _of_repository(root: Path, common: Path) -> Project:
    """Name a repository by its remote, else by the folder that its worktrees share."""
    url = _remote_url(common / "config")
    address = url and _address(url, root)
    if address:
        shown = _shown(address)
        words = [part for part in shown.split("/") if part][-2:]
        return _named("-".join(words).removesuffix(".git"), f"remote {address}", f"the Git remote {shown}")
    shared = common.parent if common.name == ".git" else common
    return _named(shared.name.removesuffix(".git"), f"path {shared}", f"the Git repository {shared}")


def _shown(address: str) -> str:
    """Return an address without what may be a credential, however often it is percent-encoded."""
    for _ in range(_MOST_ENCODINGS):
        address = unquote(address)
    return _SECRET.sub("", re.split("[?#]", address, maxsplit=1)[0])


def _named(words: str, identity: str, source: str) -> Project:
    """Return a namespace with readable words and a digest: names that differ in other letters stay different."""
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:8]
    readable = to_name(words, "project")[:_NAME_LENGTH].strip("-_.") or "project"
    return Project(f"{readable}-{digest}", plain_line(source))


def _git_folder(entry: Path) -> Path | None:
    """Return a repository's folder, which its worktrees share; None unless the user owns one here."""
    try:
        if not _is_own(entry):
            return None
        if entry.is_dir():
            own = entry
        else:
            kind, _, path = _text(entry).strip().partition(":")
            if kind != "gitdir" or not path.strip():
                return None
            own = (entry.parent / path.strip()).resolve()
        if not (own / "HEAD").is_file() or not _is_own(own):
            return None
        shared = own / "commondir"
        common = (own / _text(shared).strip()).resolve() if shared.is_file() else own
        return common.resolve() if _is_own(common) else None
    except (OSError, ValueError, MemoryServiceError):
        return None


def _is_own(path: Path) -> bool:
    """Whether the user owns a file: another user's repository above a folder must not choose its namespace."""
    return sys.platform == "win32" or path.stat().st_uid == os.geteuid()


def _text(path: Path) -> str:
    with opened(path) as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError("it is too long")
    return data.decode("utf-8", "surrogateescape")


def _remote_url(config: Path) -> str | None:
    """Return the URL of the remote `origin`, else of the first by name."""
    try:
        urls = {name: url for name, url in _remotes(_text(config)) if url and len(url) <= _MOST_URL}
    except (OSError, ValueError, MemoryServiceError):
        return None
    return urls.get("origin") or (urls[min(urls)] if urls else None)


def _remotes(text: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the URL of each remote in a Git configuration; a later value comes later."""
    remote = None
    for line in re.sub(r"\\\r?\n", "", text).splitlines():
        line = line.strip()
        section = _SECTION.match(line)
        if section:
            is_remote = section["name"].lower() == "remote" and section["sub"] is not None
            remote = re.sub(r"\\(.)", r"\1", section["sub"]) if is_remote else None
            line = line[section.end() :].strip()
        key, equals, value = line.partition("=")
        if remote is not None and equals and key.strip().lower() == "url":
            yield remote, _value(value)


def _value(text: str) -> str:
    """Read a value of a Git configuration: quotes, escapes and comments."""
    value, quoted, kept = "", False, 0
    letters = iter(text.lstrip())
    for letter in letters:
        if letter == '"':
            quoted = not quoted
        elif letter == "\\":
            value += {"n": "\n", "t": "\t", "b": "\b"}.get(following := next(letters, ""), following)
        elif letter in "#;" and not quoted:
            break
        else:
            value += letter
        if quoted or not letter.isspace():
            kept = len(value)
    return value[:kept]


def _address(url: str, root: Path) -> str | None:
    """Return host and path of a remote, or None if it has none that can be read."""
    try:
        return _host_and_path(url, root)
    except (OSError, RuntimeError, ValueError):
        return None


def _host_and_path(url: str, root: Path) -> str | None:
    """Return host and path, the same for the ssh, https and scp forms, without user, password and query."""
    if "://" not in url:
        scp = _SCP.fullmatch(url)
        if scp is None or re.match(r"[A-Za-z]:[\\/]", url):
            return str((root / Path(url).expanduser()).resolve())
        return _joined(scp["host"], scp["path"])
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "file":
        return str((root / unquote(parts.path)).resolve())
    if not host:
        return None
    is_shown = port and parts.scheme in _STANDARD_PORTS and port != _STANDARD_PORTS[parts.scheme]
    return _joined(f"{host}:{port}" if is_shown else host, unquote(parts.path))


def _joined(host: str, path: str) -> str:
    """Join host and path. Services treat letters of both cases alike in both."""
    path = path.replace("\\", "/").strip("/").removeprefix("~/")
    return f"{host.strip('[]')}/{path.removesuffix('.git').rstrip('/')}".casefold()
