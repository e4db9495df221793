"""Estimates how many tokens of a model's context an answer takes, rather too many than too few."""

from __future__ import annotations

import re

_WORDS = re.compile(r"[A-Za-z]+|[0-9]{1,3}|[!-/:-@\[-`{-~]")
_SHORT_WORD = 14
DEFAULT_MAX_TOKENS = 8000
"""What an answer may take unless its caller says otherwise."""

LEAST_CONTENT = 200
"""Tokens of content that a page shows at least, whatever its caller asks for."""


def raised(given: int, used: int) -> str:
    """Say that an answer takes more than its caller asked for."""
    return f"max_tokens was raised from {given} to {used}, the least that shows a useful part"


def count(text: str) -> int:
    """Estimate the tokens of a text. Short words take one or two, long runs of letters one for three characters, and
    each character that is not ASCII one."""
    tokens = len(text) - len(text.encode("ascii", "ignore"))
    for word in _WORDS.findall(text):
        length = len(word)
        tokens += 1 + length // 7 if length <= _SHORT_WORD else length // 3
    return tokens + text.count("\n")
