"""The cost of contents and labels is bounded before they are normalised, split or decompressed."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from typing import Literal

import pytest
import zstandard

from memory_core.errors import InvalidArgument
from memory_core.records import memory as memories
from memory_core.records import names
from memory_core.records.codec import pack
from memory_core.records.memory import compress, decompress
from memory_core.records.names import check_label, to_name
from memory_server.memories.splitter import split
from memory_server.search import analysis

MARKS = "\u0301\u0327"
"""Two marks in the wrong order: sorting many of them takes quadratic time."""


@pytest.fixture
def normalised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all texts that were normalised."""
    lengths: list[int] = []
    normalise = unicodedata.normalize

    class Counted:
        category, combining = staticmethod(unicodedata.category), staticmethod(unicodedata.combining)

        @staticmethod
        def normalize(form: Literal["NFC", "NFKC", "NFD", "NFKD"], text: str) -> str:
            lengths.append(len(text))
            return normalise(form, text)

    monkeypatch.setattr(names, "unicodedata", Counted)
    monkeypatch.setattr(analysis, "unicodedata", Counted)
    return lengths


def _seconds(work: Callable[[str], object], text: str) -> float:
    """Seconds of processor time, which other processes change little."""
    best = float("inf")
    for _ in range(3):
        started = time.thread_time()
        work(text)
        best = min(best, time.thread_time() - started)
    return best


def test_long_label_is_refused_before_it_is_normalised(normalised: list[int]) -> None:
    with pytest.raises(InvalidArgument, match="1 to 256 are allowed"):
        check_label("a" + MARKS * 20_000, "tag")
    assert not normalised


def test_decomposed_label_counts_as_it_is_stored() -> None:
    syllables = "각" * 85  # 255 bytes composed, 765 decomposed
    assert check_label(unicodedata.normalize("NFD", syllables)) == syllables


def test_name_is_made_of_the_start_of_a_long_title(normalised: list[int]) -> None:
    assert to_name("Robot" + MARKS * 20_000) == "robot"
    assert max(normalised) <= names.LABEL_MAX_BYTES


@pytest.mark.parametrize("marks", [MARKS, "\uff9e\u0301", "\uff9f\u0327\u0301"])
def test_words_with_endless_accents_cost_linear_time(marks: str) -> None:
    def words(text: str) -> None:
        analysis.words(text)

    short, long = ("a" + marks * number for number in (2000, 16_000))
    assert _seconds(words, long) < 24 * max(_seconds(words, short), 1e-4)


def test_every_mark_that_normalisation_sorts_counts_in_a_run() -> None:
    for code in range(0x110000):
        if unicodedata.combining(unicodedata.normalize("NFKD", chr(code))[0]):
            assert len(analysis._LONG_MARKS.sub(r"\1", chr(code) * 100)) == 30, hex(code)  # pyright: ignore[reportPrivateUsage]


def test_ordinary_accents_are_kept() -> None:
    assert analysis.words("Vie\u0323\u0302t") == analysis.words("Việt") == ["viet"]


WORDS = "one two three four. "


@pytest.mark.parametrize("unit", ["\n", "\r\n", "\r", "\n\n\n \n", "a\n\n", "- \n", "# a\n", "漢字", "> \n"])
@pytest.mark.parametrize("frame", ["", WORDS * 250], ids=["alone", "between words"])
def test_splitting_costs_linear_time(unit: str, frame: str) -> None:
    short, long = (frame + unit * (size // len(unit)) + frame for size in (1 << 15, 1 << 17))
    seconds = _seconds(split, long)
    assert seconds < 12 * max(_seconds(split, short), 0.01)
    assert seconds < 4.0


def test_split_text_of_blank_lines_is_whole() -> None:
    content = WORDS * 100 + "\n" * 50_000 + WORDS * 100
    assert "".join(split(content)).count("one two") >= 200


def test_body_that_declares_too_much_is_not_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "MAX_BODY", 1 << 20)
    assert decompress(compress("x" * 1000)) == "x" * 1000
    with pytest.raises(zstandard.ZstdError, match="more than"):
        decompress(compress("x" * (1 << 20)))
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(pack({"content": "x" * (1 << 20)}))
    with pytest.raises(zstandard.ZstdError):
        decompress(frame)
