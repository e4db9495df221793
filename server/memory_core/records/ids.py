"""Ids that sort by creation time."""

from __future__ import annotations

import re

from ulid import ULID

ID_PATTERN = r"^[0-9a-hjkmnp-tv-z]{26}$"


def new_id() -> str:
    """Make a lower-case ULID: 48 bits of milliseconds, 80 random bits."""
    return str(ULID()).lower()


def is_id(text: str) -> bool:
    return re.fullmatch(ID_PATTERN, text) is not None
