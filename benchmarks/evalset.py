"""Real conversations with questions and their evidence, read from outside the project."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the ids of the memories that answer it."""

    text: str
    evidence: frozenset[str]
    category: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Memories in order of time, each a dict of id, text, speaker, time and session."""

    id: str
    memories: tuple[dict[str, Any], ...]
    questions: tuple[Question, ...]


def load(name: str) -> list[Conversation]:
    """Read the set `name`; exits with a message if it does not exist."""
    folder = Path(os.environ["MEMORY_EVAL_DATA"]) if "MEMORY_EVAL_DATA" in os.environ else _BESIDE
    path = folder / f"{name}.json"
    if not path.is_file():
        sys.exit(f"SKIPPED: no evaluation set {name}; set MEMORY_EVAL_DATA to a folder that holds {name}.json")
    data = json.loads(path.read_text())
    return [_conversation(item) for item in data["conversations"]]


def _conversation(item: dict[str, Any]) -> Conversation:
    known = {memory["id"] for memory in item["memories"]}
    questions = (
        Question(question["question"], frozenset(question["evidence"]) & known, str(question["category"]))
        for question in item["questions"]
    )
    return Conversation(item["id"], tuple(item["memories"]), tuple(q for q in questions if q.evidence))
