"""The estimate of tokens is not far below what tokenizers of models make of a text, whatever it consists of."""

from __future__ import annotations

import pytest

from memory_server.contract import tokens

REALISTIC = {
    "spaces": (" " * 800, 50),
    "newlines": ("\n" * 160, 80),
    "tabs": ("\t" * 160, 40),
    "dashes": ("-" * 640, 40),
    "dots": ("." * 160, 10),
    "one letter": ("a" * 800, 100),
    "emoji": ("🦩" * 50, 150),
    "flags": ("🇳🇴" * 20, 120),
    "CJK": ("港は夜明けに開く。" * 10, 100),
    "Hangul": ("안녕하세요 " * 10, 60),
    "Hindi": ("नमस्ते " * 10, 70),
    "Tibetan": ("ཀ" * 30, 75),
    "hieroglyphs": ("𓀀" * 20, 80),
    "zero-width": ("\u200b" * 60, 60),
    "Cyrillic": ("Привет мир " * 10, 40),
    "base64": ("aGVsbG8gd29ybGQ" * 4, 36),
    "ids": ("01m8k95s4w5zp9jzmn473sk8q7 " * 10, 170),
    "camelCase": ("getSharedContextArguments " * 10, 40),
    "JSON": ('{"ok":true,"id":5},' * 10, 80),
    "English": ("The quick brown fox jumps over the lazy dog. " * 10, 100),
}
"""A text, and about how many tokens today's tokenizers make of it; where they differ, the more costly."""


@pytest.mark.parametrize("kind", REALISTIC)
def test_estimate_is_at_least_two_thirds_of_the_tokens(kind: str) -> None:
    text, realistic = REALISTIC[kind]
    assert tokens.count(text) >= realistic * 2 / 3
    assert tokens.count(text * 50) >= realistic * 50 * 2 / 3


def test_estimate_grows_with_runs_that_cross_its_blocks() -> None:
    counts = [tokens.count(" " * length) for length in range(8_000, 40_000, 500)]
    assert counts == sorted(counts)
    assert all(count >= length / 16 for count, length in zip(counts, range(8_000, 40_000, 500), strict=True))


def test_counting_stops_once_there_are_enough() -> None:
    text = "word " * 1_000_000
    assert 100 < tokens.count(text, 100) < 10_000
