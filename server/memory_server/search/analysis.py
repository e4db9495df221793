"""Words: what of a text can be searched for, in any script.

The Query Engine's tokenizer folds case for ASCII only, keeps identifiers whole and knows no language written
without spaces. What it misses goes into the `terms` field at store time, made by the same analysis that reads
queries and rescores candidates, so the three agree.
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

# What a token has beyond _MAX_WORD characters is passed over.
_WORD = regex.compile(r"([\p{L}\p{N}][\p{L}\p{N}\p{M}_]{0,127}+)[\p{L}\p{N}\p{M}_]*+")
_BETWEEN_WORDS = "".join(char if char.isalnum() or char == "_" else " " for char in map(chr, range(128)))
"""What ASCII has between words, as a table for `str.translate`, which takes a third of the time of a pattern."""
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
    """Reduce an English word to its stem; other words and short ones stay as they are."""
    return _stem_english(word) if len(word) >= MIN_STEM_LENGTH and word.isascii() else word


def query_terms(query: str) -> list[str]:
    """Give the distinct content words of a query, at most MAX_TERMS; stop words only if nothing else is there."""
    distinct = list(dict.fromkeys(words(query)))
    content = [word for word in distinct if word not in STOP_WORDS] or distinct
    if len(content) <= MAX_TERMS:
        return content
    kept = set(sorted(content, key=len, reverse=True)[:MAX_TERMS])
    return [word for word in content if word in kept]


def stem_counts(*texts: str | None) -> Counter[str]:
    """Count the stems in some texts."""
    return Counter(word for text in texts if text for word in _stems_of(text))


@lru_cache(maxsize=4096)
def source_stems(source: str) -> frozenset[str]:
    """Give the stems in a source: few sources have many memories."""
    return frozenset(stem_counts(source))


def count_stems(text: str, wanted: Mapping[str, int]) -> tuple[list[int], int]:
    """Count some stems in a text, each at the place that `wanted` gives it, and all of its words."""
    found = _stems_of(text)
    counts = [0] * len(wanted)
    if not wanted.keys().isdisjoint(found):
        for word in found:
            if word in wanted:
                counts[wanted[word]] += 1
    return counts, len(found)


def without(text: str, unwanted: Collection[str]) -> str:
    """Remove the words with an unwanted stem from a text; give the whole text if nothing would be left."""
    kept = [part for part in text.split() if not (found := words(part)) or not _all_in(found, unwanted)]
    return " ".join(kept) if any(map(words, kept)) else text


def _all_in(found: Sequence[str], unwanted: Collection[str]) -> bool:
    content = [stem(word) for word in found if word not in STOP_WORDS]
    return bool(content) and all(word in unwanted for word in content)


def extra_terms(*texts: str | None) -> str:
    """Give the words of some texts that the Query Engine's tokenizer would not index by itself."""
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
    return _WORD.findall(unicodedata.normalize("NFKC", chunk))


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
        found += _pairs(run.group())
        position = run.end()
    return found + ([word[position:]] if position < len(word) else [])


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]


def _fold(word: str) -> str:
    folded = word.casefold()
    if folded.isascii() or _UNSPACED.search(folded):
        return folded
    decomposed = unicodedata.normalize("NFKD", folded)
    return unicodedata.normalize("NFC", "".join(char for char in decomposed if not unicodedata.combining(char)))
