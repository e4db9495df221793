"""Finds out what a file or folder holds, by what stands in it and not by its name."""

from __future__ import annotations

from pathlib import Path

from memory_core.errors import InvalidArgument, echo
from memory_server.transfer.foreign import CONVERSATIONS, Format, Source
from memory_server.transfer.formats import chatgpt, claude, folder, mcp_memory, mcp_memory_service, mem0
from memory_server.transfer.lines import FORMAT

OWN = FORMAT
_DOCUMENTS = (mcp_memory_service.FORMAT, chatgpt.FORMAT, claude.FORMAT, mem0.FORMAT)
_EXPORTS = (".json", ".jsonl")
"""A single such file is hardly meant as a piece of code."""
FORMATS = {one.name: one for one in (mcp_memory.FORMAT, *_DOCUMENTS, folder.FORMAT)}
NAMES = (OWN, *FORMATS)


def detect(path: Path, name: str | None = None) -> tuple[Source, Format | None]:
    """Give what a path is read from, and its format: None for our own.

    Raises:
        InvalidArgument: it cannot be read, or is of no known format.
    """
    source = Source(path)
    if name is not None and name not in NAMES:
        raise InvalidArgument(f"format {echo(name)} is not known", hint=f"one of {', '.join(NAMES)}")
    if name is not None:
        return source, FORMATS.get(name)
    if any(one.get("kind") == OWN for one in source.head[:1]):
        return source, None
    found = _of_lines(source) or _of_documents(source)
    if found is None and folder.FORMAT.matches(source) and path.suffix.lower() not in _EXPORTS:
        found = folder.FORMAT
    if found is None:
        raise InvalidArgument(f"the format of {path} is not known", hint=f"--format with one of {', '.join(NAMES)}")
    return source, found


def _of_lines(source: Source) -> Format | None:
    return mcp_memory.FORMAT if mcp_memory.FORMAT.matches(source) else None


def _of_documents(source: Source) -> Format | None:
    if source.path.is_dir() and not any(source.path.glob(CONVERSATIONS)):
        return None
    try:
        return next((one for one in _DOCUMENTS if one.matches(source)), None)
    except InvalidArgument:
        return None
