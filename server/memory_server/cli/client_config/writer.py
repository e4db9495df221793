"""Writes a server's entry into a client's file. Keeps everything else and makes a backup."""

from __future__ import annotations

import difflib
import json
import os
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tomlkit
from tomlkit.exceptions import TOMLKitError

from memory_core.crypto.secret_files import make_folder, write_private
from memory_core.errors import InvalidArgument
from memory_core.records.bounded_files import opened
from memory_server.cli.client_config.clients import OWNED_FIELDS, SECTION, Client
from memory_server.cli.client_config.json_text import with_member

_MAX_BYTES = 64 << 20
"""Claude Code also keeps its history in its file."""
_BYTE_ORDER_MARK = "\ufeff"
_BY_HAND = "fix it first, or add the entry that --print shows by hand"


@dataclass(frozen=True, slots=True)
class Change:
    """The text of a file before and after. `before` is None if there is no file."""

    file: Path
    before: str | None
    after: str

    @property
    def is_needed(self) -> bool:
        return self.before != self.after

    def diff(self) -> str:
        """Return the changed lines only: others may hold the tokens of other servers."""
        lines = (text.splitlines(keepends=True) for text in (self.before or "", self.after))
        return "".join(difflib.unified_diff(*lines, fromfile=str(self.file), tofile=str(self.file), n=0))

    def write(self) -> Path | None:
        """Replace the file; return its backup, if any. Raises InvalidArgument if it changed or is not writable."""
        target = self.file.resolve()  # a link stays a link
        try:
            if read(target) != self.before:
                raise InvalidArgument(f"{self.file} was changed by another program", hint="try again")
            make_folder(target.parent)
            backup = _back_up(target, self.before) if self.before is not None else None
            write_private(target, self.after)  # clients keep tokens in these files
        except OSError as error:
            raise InvalidArgument(f"cannot write {self.file}: {error.strerror}", hint=_BY_HAND) from None
        return backup


def snippet(client: Client, name: str, entry: Mapping[str, Any]) -> str:
    """Return a client's file with only this entry."""
    return _with_toml("", name, entry) if client is Client.CODEX else _with_json("", SECTION[client], name, entry)


def plan(client: Client, file: Path, name: str, entry: Mapping[str, Any]) -> Change:
    """Return how a client's file would change. Raises InvalidArgument if it cannot be read or parsed."""
    try:
        before = read(file)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read {file}: {type(error).__name__}", hint=_BY_HAND) from None
    try:
        text = before or ""
        if client is Client.CODEX:
            return Change(file, before, _with_toml(text, name, entry))
        mark = _BYTE_ORDER_MARK if text.startswith(_BYTE_ORDER_MARK) else ""
        after = mark + _with_json(text.removeprefix(mark), SECTION[client], name, entry)
        after.encode()  # half of a surrogate pair can be read as JSON, but not be written
        return Change(file, before, after)
    except (ValueError, RecursionError, LookupError, TOMLKitError) as error:  # tomlkit raises all of them
        raise InvalidArgument(f"{file} cannot be parsed: {error}", hint=_BY_HAND) from None


def read(file: Path) -> str | None:
    """Return a file's text; None if there is no file.

    Raises:
        OSError or ValueError: it is not readable UTF-8, or too long. InvalidArgument: it is a pipe or a device.
    """
    try:
        with opened(file) as raw:
            data = raw.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > _MAX_BYTES:
        raise ValueError("it is too long")
    return data.decode()


def _with_json(text: str, section: str, name: str, entry: Mapping[str, Any]) -> str:
    text = text if text.strip() else "{}\n"
    servers = _object(_object(json.loads(text), "the file").get(section, {}), section)
    earlier = _object(servers.get(name, {}), f"{section}.{name}")
    merged = {key: value for key, value in earlier.items() if key not in OWNED_FIELDS} | dict(entry)
    return text if merged == earlier else with_member(text, section, name, merged)


def _with_toml(text: str, name: str, entry: Mapping[str, Any]) -> str:
    document = tomlkit.parse(text)
    section = SECTION[Client.CODEX]
    if section not in document:
        document[section] = tomlkit.table(is_super_table=True)
    servers = _object(document[section], section)
    if name not in servers:
        servers[name] = tomlkit.table()
    table = _object(servers[name], f"{section}.{name}")
    for key in [key for key in table if key in OWNED_FIELDS and key not in entry]:
        del table[key]
    for key, value in entry.items():
        if table.get(key) != value:
            table[key] = value
    return tomlkit.dumps(document)


def _object(value: Any, what: str) -> MutableMapping[str, Any]:
    if not isinstance(value, MutableMapping):
        raise ValueError(f"{what} is not an object")
    return cast("MutableMapping[str, Any]", value)


def _back_up(file: Path, text: str) -> Path:
    stamp, number = time.strftime("%Y%m%d-%H%M%S"), 0
    while os.path.lexists(backup := file.with_name(f"{file.name}.{stamp}{f'-{number}' if number else ''}.bak")):
        number += 1
    write_private(backup, text)
    return backup
