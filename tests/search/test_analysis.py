"""Word analysis in any script. Queries, the index and scores share it, so stored words are found."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stack import Agent

from memory_server.search.analysis import MAX_TERMS, extra_terms, query_terms, stem, stem_counts, words

MAX_WORD_BYTES = 128
"""The longest word that the Query Engine finds."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Boats, boats & BOATS", ["boats", "boats", "boats"]),
        ("naïve café Ångström", ["naive", "cafe", "angstrom"]),
        ("don't", ["don", "t"]),
        ("don’t l’été", ["don", "t", "l", "ete"]),
        ("getUserName", ["getusername", "get", "user", "name"]),
        ("HTTPServer", ["httpserver", "http", "server"]),
        ("max_retry_count", ["max_retry_count", "max", "retry", "count"]),
        ("__init__", ["init"]),
        ("x86_64 v2.5", ["x86_64", "x86", "64", "v2", "5"]),
        ("user@example.com", ["user", "example", "com"]),
        ("C:\\Temp\\new", ["c", "temp", "new"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("ΣΊΣΥΦΟΣ Σίσυφος", ["σισυφοσ", "σισυφοσ"]),
        ("Ｆｕｌｌ ﬁne ①", ["full", "fine", "1"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("中", ["中"]),
        ("iPhone15を買う", ["iphone15を買う", "i", "phone15", "を買", "買う"]),
        ("Привет, МИР", ["привет", "мир"]),
        ("שָׁלוֹם", ["שלום"]),
        ("مَرْحَبًا", ["مرحبا"]),
        ("e\u0301tude étude", ["etude", "etude"]),
        ("🎉 —…“” \u202e\u200b", []),
        ("", []),
        ("a\x00b", ["a", "b"]),
    ],
)
def test_words_of_a_text(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@settings(deadline=None)
@given(st.text(max_size=300))
def test_words_are_lower_case_stable_and_without_separators(text: str) -> None:
    found = words(text)
    assert words(text) == found
    for word in found:
        assert word
        assert not any(char.isspace() for char in word)
        assert word == word.casefold()


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
def test_words_of_joined_texts_are_the_words_of_both(one: str, other: str) -> None:
    assert words(f"{one}\n{other}") == words(one) + words(other)


@settings(deadline=None)
@given(st.text(max_size=300))
def test_words_do_not_depend_on_composition_or_case(text: str) -> None:
    import unicodedata

    assert words(unicodedata.normalize("NFD", text)) == words(unicodedata.normalize("NFC", text))


@settings(deadline=None)
@given(st.text(min_size=100, max_size=400) | st.sampled_from(["ж" * 500, "q" * 500, "𒀀" * 200, "ﷺ" * 100, "ß" * 128]))
def test_words_are_cut_to_the_length_the_engine_can_find(text: str) -> None:
    assert max((len(word.encode()) for word in words(text)), default=0) <= MAX_WORD_BYTES
    assert max((len(term.encode()) for term in query_terms(text)), default=0) <= MAX_WORD_BYTES


@settings(deadline=None)
@given(st.text(max_size=500))
def test_query_terms_are_few_distinct_words_of_the_query(text: str) -> None:
    terms = query_terms(text)
    assert len(terms) <= MAX_TERMS
    assert len(set(terms)) == len(terms)
    assert set(terms) <= set(words(text))
    assert bool(terms) == bool(words(text))
    assert terms == query_terms(text)


def test_stop_words_are_dropped_unless_nothing_else_remains() -> None:
    assert query_terms("What is the name of the boat?") == ["name", "boat"]
    assert query_terms("who was it") == ["who", "was", "it"]
    assert query_terms("The The") == ["the"]


def test_longest_of_too_many_terms_stay_in_order() -> None:
    short = [f"a{number:02}" for number in range(60)]
    long = [f"longword{number:02}" for number in range(60)]
    mixed = [word for pair in zip(short, long, strict=True) for word in pair]
    terms = query_terms(" ".join(mixed))
    assert len(terms) == MAX_TERMS
    assert [term for term in terms if term in long] == long
    assert terms == [word for word in mixed if word in set(terms)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("boats", "boat", True),
        ("running", "runs", True),
        ("été", "ete", False),
        ("as", "a", False),
        ("日本", "日本", True),
    ],
)
def test_stems(one: str, other: str, same: bool) -> None:
    assert (stem(one) == stem(other)) is same


def test_stem_counts_add_up_over_texts() -> None:
    assert stem_counts("Boats and a boat", None, "", "BOATING") == {"boat": 3, "and": 1, "a": 1}
    assert stem_counts(None) == {}


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=100))
def test_stem_counts_count_every_word_once(one: str, other: str) -> None:
    counts = stem_counts(one, other)
    assert counts.total() == len(words(one)) + len(words(other))
    assert counts == stem_counts(one) + stem_counts(other)


@settings(deadline=None)
@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20)))
def test_plain_words_need_no_extra_terms(plain: list[str]) -> None:
    assert extra_terms(" ".join(plain)) == ""
    assert extra_terms(", ".join(plain)) == ""


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=100) | st.none())
def test_extra_terms_are_distinct_words_of_the_texts(one: str, other: str | None) -> None:
    extra = extra_terms(one, other).split(" ")
    assert len(set(extra)) == len(extra)
    assert set(extra) - {""} <= set(words(one)) | set(words(other or ""))


@pytest.mark.parametrize(
    "separator", ["\n", "\r\n", "\x0b", "\x0c", "\x85", "\xa0", "\u2003", "\u3000", "\\ ", "\\-", "\x01"]
)
def test_words_that_the_engine_would_join_are_extra_terms(separator: str) -> None:
    extra = extra_terms(f"alpha{separator}beta").split()
    assert extra == ["alpha", "beta"]


SCRIPTS = {
    "English": "The quick brown foxes jumped over twelve lazy dogs",
    "French": "Où est l'été déjà passé près du château",
    "Turkish": "İstanbul'da IŞIK ılık ve ĞÜŞİÖÇ",
    "Vietnamese": "Tiếng Việt có dấu đầy đủ",
    "Greek": "Ο ΣΊΣΥΦΟΣ κυλάει τον βράχο",
    "Russian": "Съешь ещё этих мягких французских булок",
    "Armenian": "Ծնունդ և եւ ԲԱՐԵՒ",
    "Georgian": "ქართული ენა ᲥᲐᲠᲗᲣᲚᲘ",
    "Hebrew": "שָׁלוֹם עולם ירושלים",
    "Arabic": "مَرْحَبًا بالعالم الجميل",
    "Hindi": "नमस्ते दुनिया हिन्दी",
    "Tamil": "தமிழ் மொழி வணக்கம்",
    "Thai": "สวัสดี ชาวโลก",
    "Lao": "ພາສາ ລາວ",
    "Khmer": "ភាសា ខ្មែរ",
    "Burmese": "မြန်မာ ဘာသာ",
    "Chinese": "北京大学 生命科学 中",
    "Japanese": "東京タワー カタカナ ひらがな",
    "Korean": "안녕하세요 세계 여러분",
    "Amharic": "አማርኛ ቋንቋ",
    "Mongolian": "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ",
    "Cherokee": "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ꮳꮃꭹ",
    "Deseret": "𐐔𐐯𐑅𐐨𐑉𐐯𐐻 𐐰𐑊𐑁𐐰𐐺𐐯𐐻",
    "full width": "Ｆｕｌｌ ｗｉｄｔｈ ﬁgures ①②",
    "identifiers": "getUserName HTTPServer max_retry_count x86_64 __init__",
    "apostrophes": "don't won’t rock'n'roll O’Brien's",
    "dashes": "state-of-the-art well–known em—dash",
    "code": "std::vector<int> a->b; foo.bar(baz) C:\\Temp\\new",
    "lines": "first line\nsecond\r\nthird\x0bfourth\x0cfifth\u2028sixth",
    "spaces": "no\xa0break narrow\u202fspace em\u2003space ideographic\u3000space",
    "escapes": "My\\ Documents some\\-thing a\\,b \\alpha",
    "control characters": "bell\x07rings unit\x1fseparator delete\x7fd",
    "long words": f"{'q' * 140} {'ж' * 90} {'é' * 128}",
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
async def test_every_word_of_a_stored_text_is_found(alice: Agent, script: str) -> None:
    text = SCRIPTS[script]
    memory_id = await alice.store(text, wait=False)
    await alice.store("another text", source="somebody else", wait=False)
    asked = list(dict.fromkeys([*text.split(), *(word for word in words(text) if word in words(word))]))

    async def finds(word: str) -> bool:
        answer = await alice.call("semantic_search", query=word, mode="keyword")
        return memory_id in [hit["memory"]["memory_id"] for hit in answer["hits"]]

    found = await asyncio.gather(*map(finds, asked))
    assert [word for word, is_found in zip(asked, found, strict=True) if words(word) and not is_found] == []


async def test_words_of_the_source_are_found_too(alice: Agent) -> None:
    await alice.store("Said at noon.", source="Zoë\xa0O’Brien 東京", wait=False)
    for word in ("zoe", "ZOË", "brien", "東京"):
        assert await alice.search(word, mode="keyword") == ["Said at noon."], word


MONOTONOUS = {
    "one letter": "a", "camel": "aB", "underscores": "a_", "accents": "e\u0301", "marks": "\u0301", "han": "東",
    "mixed": "a東", "spaces": " ", "backslashes": "\\", "digits": "1", "upper": "A", "expanding": "ﷺ", "words": "word ",
    "emoji": "👩‍👩‍👧",
    "lines": "x\n", "quotes": "'", "thai": "สวัสดี",
}  # fmt: skip


@pytest.mark.parametrize("kind", MONOTONOUS)
def test_analysis_time_grows_linearly_with_length(kind: str) -> None:
    unit = MONOTONOUS[kind]

    def seconds(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            query_terms(text)
            extra_terms(text)
            stem_counts(text)
            best = min(best, time.perf_counter() - started)
        return best

    assert seconds(100_000) < 30 * seconds(10_000) + 0.05
