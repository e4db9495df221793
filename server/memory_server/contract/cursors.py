"""Cursors of lists: a position in one list, which no other list accepts."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from memory_core.errors import InvalidArgument, echo
from memory_core.records.keys import digest

_DIGEST = 8
_LONGEST = 512
_CURSOR = re.compile(rf"([0-9a-f]{{{_DIGEST}}})([\x20-\x7e]+)")


def list_of(tool: str, namespace: str, agent: str, arguments: dict[str, Any]) -> str:
    """Return a digest of what a list shows: who lists it, and the arguments that select it."""
    chosen = {name: value for name, value in arguments.items() if name not in ("cursor", "limit", "max_tokens")}
    return digest(json.dumps([tool, namespace, agent, chosen], sort_keys=True, default=str))[:_DIGEST]


def write(which: str, position: str) -> str:
    """Encode a position in the list of that digest."""
    return base64.urlsafe_b64encode(f"{which}{position}".encode()).decode().rstrip("=")


def read(cursor: str, which: str) -> str:
    """Return the position of a cursor. Raises InvalidArgument if it is unknown, or of another list."""
    found = _CURSOR.fullmatch(_decoded(cursor)) if len(cursor) <= _LONGEST else None
    if found is None:
        raise unknown(cursor)
    if found[1] != which:
        hint = "send the same arguments as for the page before, or leave the cursor out"
        raise InvalidArgument("this cursor is of another list or of other arguments", hint=hint)
    return found[2]


def unknown(cursor: str) -> InvalidArgument:
    return InvalidArgument(f"unknown cursor {echo(cursor)}", hint="use next_cursor unchanged")


def _decoded(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (ValueError, binascii.Error):
        return ""
