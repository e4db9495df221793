"""Splits long contents into chunks that fit the embedding model's window, at sentence and code-block borders."""

from __future__ import annotations

from collections.abc import Iterator

import regex
from semantic_text_splitter import MarkdownSplitter

PIECE_TOKENS = 200
"""Target size, below the models' usual window of 256, because tokens are only estimated here."""
_OVERLAP = 0.12
_BLOCK = 16_384  # characters split at once: the splitter takes quadratic time for texts without borders
_MAX_CAPACITY = 8192
"""Most characters of a chunk: the splitter takes quadratic time for blank lines that fit into one chunk."""
_SAMPLE = 4096
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}]")
_WORDS = regex.compile(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]")
_BORDERS = ("\n\n", "\n", ". ", " ")


Placed = tuple[int, str]
"""A chunk, after the position where it begins in the content. Chunks overlap, and leave out blanks."""


def split(content: str) -> list[str]:
    """Return the chunks in order; a content that fits the window is one chunk."""
    return [chunk for chunks in split_stepwise(content) for _, chunk in chunks]


def split_stepwise(content: str) -> Iterator[list[Placed]]:
    """Yield the chunks in order, in lists that take at most a tenth of a second each."""
    capacity = min(max(64, int(PIECE_TOKENS / _tokens_per_character(content))), _MAX_CAPACITY)
    if len(content) <= capacity:
        yield [(0, content)]
        return
    splitter = MarkdownSplitter(capacity, overlap=int(capacity * _OVERLAP), trim=False)
    number, last = 0, (0, content[:capacity])
    for start, block in _blocks(content):
        chunks = [(start + offset, chunk) for offset, chunk in splitter.chunk_indices(block) if chunk.strip()]
        number, last = number + len(chunks), chunks[-1] if chunks else last
        yield chunks
    if number < 2:  # a content of one chunk is stored as that chunk alone: blanks around it would be lost
        yield [last]


def _blocks(content: str) -> Iterator[Placed]:
    """Cut at the best border in the last quarter of each block."""
    start = 0
    while len(content) - start > _BLOCK:
        window = content[start : start + _BLOCK]
        cuts = (window.rfind(border, _BLOCK * 3 // 4) + len(border) for border in _BORDERS)
        cut = next((cut for cut in cuts if cut > _BLOCK * 3 // 4), _BLOCK)
        yield start, window[:cut]
        start += cut
    yield start, content[start:]


def _tokens_per_character(content: str) -> float:
    """Estimate from samples: words cost by length, dense scripts by character."""
    middle = max(0, len(content) // 2 - _SAMPLE // 2)
    samples = (content[:_SAMPLE], content[middle : middle + _SAMPLE], content[-_SAMPLE:])
    return max(_estimate(sample) / max(len(sample), 1) for sample in samples)


def _estimate(text: str) -> float:
    dense = len(_DENSE.findall(text))
    words = sum(1 + len(word) // 7 for word in _WORDS.findall(_DENSE.sub(" ", text)))
    return max(1.0, dense + words)
