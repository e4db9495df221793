"""Ids that sort by creation time."""

from __future__ import annotations

import re
from typing import Any

from ulid import ULID

ID_PATTERN = r"^[0-9a-hjkmnp-tv-z]{26}$"


def new_id() -> str:
    """Make a lower-case ULID: 48 bits of milliseconds, 80 random bits."""
    return str(ULID()).lower()


def is_id(text: str) -> bool:
    return re.fullmatch(ID_PATTERN, text) is not None


_AROUND = " \t\r\n\u00a0[](){}<>`'\"*,;:\u2018\u2019\u201c\u201d"
"""What stands around an id in texts. No id, name or cursor begins or ends with one of these."""
_BETWEEN = re.compile(r"[\s,;]+")


def bare(value: Any) -> Any:
    """Return a text without the brackets, quotes, marks and blanks around it, unless that is all of it."""
    return (value.strip(_AROUND) or value) if isinstance(value, str) else value


def bare_id(value: Any) -> Any:
    """Return an id as `bare` does, also without the full stop of a sentence."""
    return bare(bare(value).rstrip(".")) if isinstance(value, str) else value


def split_ids(text: str, most: int) -> list[str]:
    """Return at most so many ids of a text that lists them, with commas, blanks or lines between; at least the text."""
    parts = (part.strip(_AROUND).rstrip(".").strip(_AROUND) for part in _BETWEEN.split(text, most)[:most])
    return [part for part in parts if part not in ("", "-")] or [text]
