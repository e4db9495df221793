"""Tables and counts on the command line and in answers."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

import memory_server
from memory_core.records.ids import new_id
from memory_server.cli import printing
from memory_server.contract.agents import AgentListAnswer, HeartbeatAnswer
from memory_server.contract.answer import partial_reason
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
    assert counted(number, "memory") == text


def test_answers_use_the_singular_for_one() -> None:
    beat = HeartbeatAnswer(leases_renewed={"t": "later"}, leases_lost=[], pending_tasks=1, unread_events=1)
    assert beat.lines() == ["1 lease renewed, 1 task waits, 1 unread event."]
    assert AgentListAnswer(agents=[], total=0).lines() == ["0 agents."]
    assert partial_reason(1.0, waiting=1) == "1 text still waits for its vector and was searched by words only"
    assert RevokeAnswer(grant_id="g", grants_ended=1).lines() == ["Revoked g: 1 grant ended."]
    assert SharedContextAnswer().lines() == ["0 shared memories."]


_COUNT = re.compile(r"^len\(|count|number|total|tasks|left|omitted|failed|dropped|growth|waiting|altered|unsigned")
_PLURAL = re.compile(r" (\w+ )?(\w+s|memories|queries|entries)\b")
_VERBS = re.compile(r" (\w+ )?(is|was|has|does|bytes|waits|completed)\b")
_MANY = ("would delete {plan.matched}", "{len(ranked)} able agents", "{len(texts[name]):,} characters", "at most")
"""Parts of messages that are written for more than one only."""


def test_messages_count_with_their_noun() -> None:
    """A number before a noun in the plural goes through `counted`."""
    found: list[str] = []
    for file in Path(memory_server.__file__).parent.rglob("*.py"):
        for text in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.JoinedStr)):
            for value, after in pairwise(text.values):
                if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                    continue
                number, words = ast.unparse(value.value), str(after.value)
                if "counted(" not in number and _COUNT.search(number) and _PLURAL.match(words):
                    found += [] if _VERBS.match(words) else [f"{file.name}:{text.lineno}: {ast.unparse(text)}"]
    assert [one for one in found if not any(known in one for known in _MANY)] == []


def test_greeting_with_tokens_names_no_command_that_would_get_401() -> None:
    text = greeting("http://127.0.0.1:8765/mcp", with_tokens=True)
    assert "?agent=" not in text
    assert "Bearer TOKEN" in text
    assert "redis-memory agents token" in text
