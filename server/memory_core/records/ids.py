"""Ids that sort by the time they were made: memories, owners, asks."""

from __future__ import annotations

import re

from ulid import ULID

ID_PATTERN = r"^[0-9a-hjkmnp-tv-z]{26}$"


def new_id() -> str:
    """Make a ULID in lower case: 48 bits of milliseconds, 80 random."""
    return str(ULID()).lower()


def is_id(text: str) -> bool:
    """Whether a text could be an id."""
    return re.fullmatch(ID_PATTERN, text) is not None
