"""Detects the format of a file or folder by its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from memory_core.errors import InvalidArgument, echo, plain_line
from memory_server.transfer.export_lines import FORMAT
from memory_server.transfer.foreign import Format
from memory_server.transfer.formats import chatgpt, claude, empty, folder, mcp_memory, mcp_memory_service, mem0
from memory_server.transfer.source import DamagedDocument, Source

OWN = FORMAT
_DOCUMENTS = (mcp_memory_service.FORMAT, chatgpt.FORMAT, claude.FORMAT, mem0.FORMAT, mcp_memory.FORMAT)
_EXPORTS = (".json", ".jsonl", ".gz", ".zst")
"""A single file of these is an export in an unknown format, not code."""
FORMATS = {one.name: one for one in (*_DOCUMENTS, folder.FORMAT)}
NAMES = (OWN, *FORMATS)
_SHOWN_KEYS, _SHOWN_PLACE = 5, 64


def detect(path: Path, name: str | None = None) -> tuple[Source, Format | None]:
    """Return the source at a path and its format, None for our own.

    Raises:
        InvalidArgument: it cannot be read, or its format is unknown.
    """
    source = Source(path)
    if name is not None and name not in NAMES:
        raise InvalidArgument(f"unknown format {echo(name)}", hint=f"one of {', '.join(NAMES)}")
    if name is not None:
        return source, FORMATS.get(name)
    first = source.first_line
    if isinstance(first, dict) and cast(dict[str, Any], first).get("kind") == OWN:
        return source, None
    if folder.FORMAT.matches(source) and path.is_file() and path.suffix.lower() not in _EXPORTS:
        return source, folder.FORMAT
    found = _document_format(source)
    damage = next((one for one in source.contents if isinstance(one, DamagedDocument)), None) if not found else None
    if damage is not None:
        where = plain_line(damage.where)[:_SHOWN_PLACE]
        raise InvalidArgument(
            f"{path} cannot be read, so nothing was imported: {where}: {damage.reason}", hint="export it again"
        )
    if found is None:
        raise InvalidArgument(
            f"{path} has an unknown format: {_seen(source)}", hint=f"pass --format with one of {', '.join(NAMES)}"
        )
    return source, found


def _document_format(source: Source) -> Format | None:
    try:
        found = next((one for one in (*_DOCUMENTS, empty.FORMAT) if one.matches(source)), None)
    except InvalidArgument:
        if source.path.is_file():
            raise
        found = None
    return folder.FORMAT if found is None and source.path.is_dir() else found


def _seen(source: Source) -> str:
    """Say what a source has instead of a known format, in few words."""
    for one in source.documents:
        value = cast(Any, one.value[0] if isinstance(one.value, list) and one.value else one.value)
        if isinstance(value, dict):
            keys = ", ".join(echo(str(key)) for key in list(cast(dict[str, Any], value))[:_SHOWN_KEYS])
            return f"its first object has the keys {keys}"
        return "it has no objects"
    return "it has no JSON"
