"""Parses JSON that others sent, after a check that it is not made of too many values.

The objects of a parsed text can take 30 times its bytes, and more than a second for the longest request.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import from_json

MAX_TOKENS = 100_000
"""Strings and separators of one text. A batch of a thousand operations has about 20,000."""
_SEPARATORS = (b",", b":", b"[", b"{")
_STRING = re.compile(rb'"[^"]*+"?')


def parse_json(text: str | bytes, max_tokens: int = MAX_TOKENS) -> Any:
    """Parse a JSON text. Raises ValueError if it is not JSON, is nested too deeply, or has too many values."""
    if has_too_many_values(text, max_tokens):
        raise ValueError("it has too many values")
    return from_json(text)


def has_too_many_values(text: str | bytes | bytearray, max_tokens: int = MAX_TOKENS) -> bool:
    """Whether a text has more strings and separators than allowed. The cost is linear, and nothing is parsed."""
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if 2 * sum(map(data.count, _SEPARATORS)) < max_tokens:
        return False  # a text has at most one string more than separators
    plain = data.replace(rb"\\", b"").replace(rb"\"", b"")
    strings = (plain.count(b'"') + 1) // 2
    if strings > max_tokens:
        return True
    return strings + sum(map(_STRING.sub(b"", plain).count, _SEPARATORS)) > max_tokens
