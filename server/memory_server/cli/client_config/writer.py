"""Puts a server into a client's file: nothing else of it changes, and the file as it was is kept beside it."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from memory_core.errors import InvalidArgument
from memory_server.cli.client_config.clients import OURS, SECTION, Client
from memory_server.cli.client_config.json_text import with_member

_MARK = "\ufeff"
_BY_HAND = "mend it first; or add by hand what --print shows"


@dataclass(frozen=True, slots=True)
class Change:
    """A file before and after; `before` is None where there is none yet."""

    file: Path
    before: str | None
    after: str

    @property
    def is_needed(self) -> bool:
        """Whether anything changes."""
        return self.before != self.after

    def diff(self) -> str:
        """Show what changes."""
        lines = (text.splitlines(keepends=True) for text in (self.before or "", self.after))
        return "".join(difflib.unified_diff(*lines, fromfile=str(self.file), tofile=str(self.file), n=2))

    def write(self) -> Path | None:
        """Replace the file in one step; give where the file as it was is kept, None where there was none.

        Raises:
            InvalidArgument: it cannot be written, or changed since it was read.
        """
        target = self.file.resolve()  # a link stays a link
        try:
            if read(target) != self.before:
                raise InvalidArgument(f"{self.file} was changed by another program just now", hint="try again")
            target.parent.mkdir(parents=True, exist_ok=True)
            kept = _keep(target) if self.before is not None else None
            draft = target.with_name(f".{target.name}.{os.getpid()}")
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline="") as file:
                file.write(self.after)
            if self.before is not None:
                shutil.copymode(target, draft)
            draft.replace(target)
        except OSError as error:
            raise InvalidArgument(f"cannot write {self.file}: {error.strerror}", hint=_BY_HAND) from None
        return kept


def snippet(client: Client, name: str, entry: Mapping[str, Any]) -> str:
    """Give an entry as it stands in a client's file that holds nothing else."""
    return _with_toml("", name, entry) if client is Client.CODEX else _with_json("", SECTION[client], name, entry)


def plan(client: Client, file: Path, name: str, entry: Mapping[str, Any]) -> Change:
    """Work out what a client's file becomes.

    Raises:
        InvalidArgument: it cannot be read or parsed, or has something else where servers belong.
    """
    try:
        before = read(file)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read {file}: {type(error).__name__}", hint=_BY_HAND) from None
    try:
        text = before or ""
        if client is Client.CODEX:
            return Change(file, before, _with_toml(text, name, entry))
        mark = _MARK if text.startswith(_MARK) else ""
        return Change(file, before, mark + _with_json(text.removeprefix(_MARK), SECTION[client], name, entry))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{file} cannot be parsed: {error}", hint=_BY_HAND) from None


def read(file: Path) -> str | None:
    """Give a file's text as it is; None where there is none.

    Raises:
        OSError, ValueError: it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        return None


def _with_json(text: str, section: str, name: str, entry: Mapping[str, Any]) -> str:
    """Give a JSON text with the entry. Other keys of an entry that is there stay.

    Raises:
        ValueError: it is no JSON, or no object where one belongs.
    """
    text = text if text.strip() else "{}\n"
    servers = _object(_object(json.loads(text), "it").get(section, {}), section)
    earlier = _object(servers.get(name, {}), f"{section}.{name}")
    merged = {key: value for key, value in earlier.items() if key not in OURS} | dict(entry)
    return text if merged == earlier else with_member(text, section, name, merged)


def _with_toml(text: str, name: str, entry: Mapping[str, Any]) -> str:
    """Give a TOML text with the entry. Other keys of an entry that is there stay.

    Raises:
        ValueError: it is no TOML, or no table where one belongs.
    """
    import tomlkit

    document = tomlkit.parse(text)
    section = SECTION[Client.CODEX]
    if section not in document:
        document[section] = tomlkit.table(is_super_table=True)
    servers = _object(document[section], section)
    if name not in servers:
        servers[name] = tomlkit.table()
    table = _object(servers[name], f"{section}.{name}")
    for key in [key for key in table if key in OURS and key not in entry]:
        del table[key]
    for key, value in entry.items():
        if table.get(key) != value:
            table[key] = value
    return tomlkit.dumps(document)


def _object(value: Any, what: str) -> MutableMapping[str, Any]:
    if not isinstance(value, MutableMapping):
        raise ValueError(f"{what} is no object")
    return cast("MutableMapping[str, Any]", value)


def _keep(file: Path) -> Path:
    """Copy a file beside itself, under a name that no other copy has."""
    stamp, number = time.strftime("%Y%m%d-%H%M%S"), 0
    while (kept := file.with_name(f"{file.name}.{stamp}{f'-{number}' if number else ''}.bak")).exists():
        number += 1
    shutil.copy2(file, kept)
    return kept
