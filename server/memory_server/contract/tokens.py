"""Estimates how many tokens of a model's context an answer takes, rather too many than too few."""

from __future__ import annotations

import re
import string

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]{1,3}|[!-/:-@\[-`{-~]{1,2}|[\x00-\x08\x0a-\x1f\x7f]| {2,}|\t+")
_SHORT_WORD = 14
_SPACES_PER_TOKEN, _TABS_PER_TOKEN, _CAPITALS_PER_TOKEN = 16, 4, 2
_TWO_TOKENS = re.compile(
    "[\u0800-\u08ff\u0e80-\u1fff\u2070-\u24ff\u25a0-\u2fff\ua000-\uabff\ud7b0-\ufe0e\ufe10-\ufefe]"
)
"""Characters of three bytes that many tokenizers know only by their bytes. They know the common ones of Asia."""
_PUNCTUATION = frozenset(string.punctuation)
_BLOCK = 8192
DEFAULT_MAX_TOKENS = 8000
"""What an answer may take unless its caller says otherwise, its two forms together."""

LEAST_CONTENT = 400
"""Tokens of content that a page shows at least, whatever its caller asks for."""


def raised(given: int, used: int) -> str:
    """Say that an answer takes more than its caller asked for."""
    return f"max_tokens was raised from {given} to {used}, the least that shows a useful part"


def count(text: str, enough: int | None = None) -> int:
    """Estimate the tokens of a text; stop counting once there are more than `enough`.

    Short words take one or two, long runs of letters one for three characters, runs of blanks one for 16, punctuation
    one for two, and each character that is not ASCII one to three.
    """
    tokens = 0
    for start in range(0, len(text), _BLOCK):
        tokens += _count(text[start : start + _BLOCK])
        if enough is not None and tokens > enough:
            break
    return tokens


def _count(text: str) -> int:
    tokens = 0 if text.isascii() else _count_others(text)
    for word in _WORDS.findall(text):
        length = len(word)
        if length == 1 or (length == 2 and word[0] in _PUNCTUATION):
            tokens += 1
        elif word[0] == " ":
            tokens += 1 + length // _SPACES_PER_TOKEN
        elif word[0] == "\t":
            tokens += 1 + length // _TABS_PER_TOKEN
        elif word.isupper():
            tokens += 1 + (length - 1) // _CAPITALS_PER_TOKEN
        else:
            tokens += 1 + length // 7 if length <= _SHORT_WORD else length // 3
    return tokens


def _count_others(text: str) -> int:
    """Count the characters that are not ASCII: one each, two for rare ones, three beyond the first 65,536."""
    others = len(text) - len(text.encode("ascii", "ignore"))
    beyond = len(text.encode("utf-16-le", "surrogatepass")) // 2 - len(text)
    return others + len(_TWO_TOKENS.findall(text)) + 2 * beyond
