"""Detects the format of a file or folder by its content."""

from __future__ import annotations

from pathlib import Path

from memory_core.errors import InvalidArgument, echo
from memory_server.transfer.export_lines import FORMAT
from memory_server.transfer.foreign import CONVERSATIONS, Format, Source
from memory_server.transfer.formats import chatgpt, claude, folder, mcp_memory, mcp_memory_service, mem0

OWN = FORMAT
_DOCUMENTS = (mcp_memory_service.FORMAT, chatgpt.FORMAT, claude.FORMAT, mem0.FORMAT)
_EXPORTS = (".json", ".jsonl")
"""A single file of these is an export in an unknown format, not code."""
FORMATS = {one.name: one for one in (mcp_memory.FORMAT, *_DOCUMENTS, folder.FORMAT)}
NAMES = (OWN, *FORMATS)


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
    if any(one.get("kind") == OWN for one in source.head[:1]):
        return source, None
    found = mcp_memory.FORMAT if mcp_memory.FORMAT.matches(source) else _document_format(source)
    if found is None and folder.FORMAT.matches(source) and path.suffix.lower() not in _EXPORTS:
        found = folder.FORMAT
    if found is None:
        raise InvalidArgument(f"{path} has an unknown format", hint=f"pass --format with one of {', '.join(NAMES)}")
    return source, found


def _document_format(source: Source) -> Format | None:
    if source.path.is_dir() and not any(source.path.glob(CONVERSATIONS)):
        return None
    try:
        return next((one for one in _DOCUMENTS if one.matches(source)), None)
    except InvalidArgument:
        return None
