"""Tables and counts on the command line and in answers."""

from __future__ import annotations

import pytest

from memory_core.records.ids import new_id
from memory_server.cli import printing
from memory_server.contract.sharing import RevokeAnswer, SharedContextAnswer
from memory_server.contract.untrusted_text import counted
from memory_server.http.greeting import greeting


def test_narrow_terminal_never_cuts_an_id_or_a_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printing, "_terminal_width", lambda: 80)
    cells = [new_id(), "accepted", "claude-of-the-first-team", "gemini-of-another", "2026-12-28T22:59:42.918Z", "ctx"]
    printing.table(("grant", "state", "from", "to", "until", "covers"), [cells])
    assert capsys.readouterr().out.splitlines()[1].split() == cells


def test_last_column_still_folds_at_the_width_of_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printing, "_terminal_width", lambda: 40)
    printing.table(("name", "words"), [("one", "word " * 40)])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40


@pytest.mark.parametrize("width", [None, 80])
def test_no_line_of_a_table_ends_with_blanks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int | None
) -> None:
    monkeypatch.setattr(printing, "_terminal_width", lambda: width)
    printing.table(("task", "worker", "description"), [("a", "", ""), ("b", "ann", "long " * 30), ("c", "b", "金")])
    printing.pairs([("name", "x"), ("other name", "y" * 300)])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []


def test_piped_table_has_one_line_for_each_record(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(new_id(), "claude-of-the-first-team " * 5, "word " * 40), (new_id(), "b", "金 " * 60), (new_id(), "c", "")]
    printing.table(("task", "worker", "description"), rows)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["task", "worker", "description"]
    assert [line.split()[0] for line in lines] == [row[0] for row in rows]
    assert lines[0].endswith("word word")
    printing.pairs([("content", "word " * 300), ("none", None), ("id", "x")])
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(("number", "text"), [(0, "0 memories"), (1, "1 memory"), (2, "2 memories")])
def test_count_agrees_with_its_noun(number: int, text: str) -> None:
    assert counted(number, "memory", "memories") == text


def test_answers_use_the_singular_for_one() -> None:
    assert RevokeAnswer(grant_id="g", grants_ended=1).lines() == ["Revoked g: 1 grant ended."]
    assert SharedContextAnswer().lines() == ["0 shared memories."]


def test_greeting_with_tokens_names_no_command_that_would_get_401() -> None:
    text = greeting("http://127.0.0.1:8765/mcp", with_tokens=True)
    assert "?agent=" not in text
    assert "Bearer TOKEN" in text
    assert "redis-memory agents token" in text
