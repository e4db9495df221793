"""Extracts the searchable words of a text, in any script.

The Query Engine's tokenizer folds case for ASCII only, keeps identifiers whole and does not split languages without
spaces. The words it misses go into the `terms` field. Storing, queries and scoring use the same analysis.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import chain

import regex
import snowballstemmer

MAX_TERMS = 64
"""Query terms beyond this are dropped, shortest first: they carry the least meaning."""
MIN_STEM_LENGTH = 4
"""Shorter words are not stemmed, as in the Query Engine."""
_MAX_WORD = 128

STOP_WORDS = frozenset(
    """a about above after again against all am an and any are as at be because been before being below between
    both but by can could did do does doing don down during each few for from further had has have having he her
    here hers him his how i if in into is isn it its itself just ll m me more most my myself no nor not now o of
    off on once only or other our ours out over own re s same she should so some such t than that the their them
    then there these they this those through to too under until up ve very was we were what when where which
    while who whom why will with would you your yours""".split()
)

# Drops characters of a token beyond _MAX_WORD.
_WORD = regex.compile(r"([\p{L}\p{N}][\p{L}\p{N}\p{M}_]{0,127}+)[\p{L}\p{N}\p{M}_]*+")
_BETWEEN_WORDS = "".join(char if char.isalnum() or char == "_" else " " for char in map(chr, range(128)))
"""Table for `str.translate` that blanks ASCII separators, three times as fast as a pattern."""
_LONG_MARKS = regex.compile(r"([\p{M}\uff9e\uff9f]{30})[\p{M}\uff9e\uff9f]+")
"""A run of characters that normalisation sorts, in quadratic time. Unicode's stream-safe form has runs of 30."""
_CAMEL = regex.compile(r"(?<=[\p{Ll}\p{N}])(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll})")
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー]+")
# Where the Query Engine itself breaks text.
_ENGINE_DROPS = regex.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ENGINE_BREAK = regex.compile(r"(?<!\\)[\t ,.<>{}\[\]\"':;!@#$%^&*()\-+=~/|?`]+")

_stem_english = snowballstemmer.stemmer("english").stemWord


def words(text: str) -> list[str]:
    """Split a text into folded words: no case, no accents, identifiers also in parts, CJK in pairs."""
    return [word for token in _tokens(text) for word in _parts(token)]


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Reduce an English word to its stem; leave other words and short ones unchanged."""
    return _stem_english(word) if len(word) >= MIN_STEM_LENGTH and word.isascii() else word


def query_terms(query: str) -> list[str]:
    """Return the distinct content words of a query, at most MAX_TERMS; stop words only if there are no others."""
    distinct = list(dict.fromkeys(words(query)))
    content = [word for word in distinct if word not in STOP_WORDS] or distinct
    if len(content) <= MAX_TERMS:
        return content
    kept = set(sorted(content, key=len, reverse=True)[:MAX_TERMS])
    return [word for word in content if word in kept]


def stem_counts(*texts: str | None) -> Counter[str]:
    return Counter(word for text in texts if text for word in _stems_of(text))


@lru_cache(maxsize=4096)
def source_stems(source: str) -> frozenset[str]:
    """Return the stems in a source. Cached, because few sources have many memories."""
    return frozenset(stem_counts(source))


def count_stems(text: str, columns: Mapping[str, int]) -> tuple[list[int], int]:
    """Count some stems in a text, each in its column, and all words of the text."""
    found = _stems_of(text)
    counts = [0] * len(columns)
    if not columns.keys().isdisjoint(found):
        for word in found:
            if word in columns:
                counts[columns[word]] += 1
    return counts, len(found)


def without(text: str, unwanted: Collection[str]) -> str:
    """Remove words with an unwanted stem from a text; return the whole text if nothing would be left."""
    kept = [part for part in text.split() if not (found := words(part)) or not _all_in(found, unwanted)]
    return " ".join(kept) if any(map(words, kept)) else text


def _all_in(found: Sequence[str], unwanted: Collection[str]) -> bool:
    content = [stem(word) for word in found if word not in STOP_WORDS]
    return bool(content) and all(word in unwanted for word in content)


def extra_terms(*texts: str | None) -> str:
    """Return the words of some texts that the Query Engine's tokenizer would not index."""
    extra: dict[str, None] = {}
    for text in texts:
        if not text:
            continue
        engine_words = {word.lower() for word in _ENGINE_BREAK.split(_ENGINE_DROPS.sub("", text)) if word.isascii()}
        extra.update(dict.fromkeys(word for word in words(text) if word not in engine_words))
    return " ".join(extra)


def _tokens(text: str) -> list[str]:
    chunks = text.translate(_BETWEEN_WORDS).split()
    if text.isascii() and max(map(len, chunks), default=0) <= _MAX_WORD:
        return chunks
    return [token for chunk in chunks for token in _tokens_of(chunk)]


def _tokens_of(chunk: str) -> list[str]:
    if chunk.isascii():
        return [chunk.lstrip("_")[:_MAX_WORD]]
    return _WORD.findall(unicodedata.normalize("NFKC", _LONG_MARKS.sub(r"\1", chunk)))


def _stems_of(text: str) -> list[str]:
    return list(chain.from_iterable(map(_stems, _tokens(text))))


@lru_cache(maxsize=65_536)
def _stems(token: str) -> tuple[str, ...]:
    return tuple(map(stem, _parts(token)))


@lru_cache(maxsize=65_536)
def _parts(token: str) -> tuple[str, ...]:
    token = token.lstrip("_")
    if token.isascii() and token.isalnum() and (token.islower() or token.istitle() or token.isdigit()):
        return (token.lower(),)
    pieces = [piece for piece in token.split("_") if piece]
    camel = [part for piece in pieces for part in _CAMEL.split(piece) if part]
    whole = [_fold(token)] if len(camel) > 1 else []
    return tuple(map(_clip, whole + [word for part in camel for word in _script_parts(_fold(part))]))


def _clip(word: str) -> str:
    return word if len(word) <= _MAX_WORD // 4 else word.encode()[:_MAX_WORD].decode(errors="ignore")


def _script_parts(word: str) -> list[str]:
    found: list[str] = []
    position = 0
    for run in _UNSPACED.finditer(word):
        found += [word[position : run.start()]] if run.start() > position else []
        chars = run.group()
        found += [chars[i : i + 2] for i in range(len(chars) - 1)] or [chars]
        position = run.end()
    return found + ([word[position:]] if position < len(word) else [])


def _fold(word: str) -> str:
    folded = word.casefold()
    if folded.isascii() or _UNSPACED.search(folded):
        return folded
    decomposed = unicodedata.normalize("NFKD", folded)
    return unicodedata.normalize("NFC", "".join(char for char in decomposed if not unicodedata.combining(char)))
