"""Exports in the shapes and with the damage that people have: read by shape, with what is lost counted."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from support.transfer_fixtures import chatgpt, claude

from memory_core.errors import InvalidArgument
from memory_server.transfer import files
from memory_server.transfer.detection import detect
from memory_server.transfer.foreign import Bad, Foreign, PassedOver
from memory_server.transfer.json_values import read_values


def read(path: Path) -> tuple[str, list[Foreign], list[Bad], Counter[str]]:
    """Return the format of a file, and what it holds: memories, damage, and what makes no memory."""
    source, known = detect(path)
    assert known is not None
    found = list(known.read(source))
    skipped = Counter(one.kind for one in found if isinstance(one, PassedOver))
    return (
        known.name,
        [one for one in found if isinstance(one, Foreign)],
        [b for b in found if isinstance(b, Bad)],
        skipped,
    )


def texts(memories: list[Foreign]) -> list[str]:
    return [one.content for one in memories]


MARIA = {"type": "entity", "name": "Maria", "entityType": "person", "observations": ["Prefers tabs"]}
ATLAS = {"type": "entity", "name": "Atlas", "entityType": "project", "observations": ["Ships on Friday"]}
LINK = {"type": "relation", "from": "Maria", "to": "Atlas", "relationType": "works_on"}
GRAPH = [MARIA, ATLAS, LINK]
MEM0 = [{"id": "1", "memory": "Prefers tabs"}, {"id": "2", "memory": "Ships on Friday"}, {"id": "3", "memory": "金"}]
OPENMEMORY = [{"id": one["id"], "content": one["memory"], "state": "active", "app": "cursor"} for one in MEM0]
RECORDS: dict[str, list[Any]] = {"mcp-memory": GRAPH, "mem0": MEM0, "openmemory": OPENMEMORY}


def _lines(records: list[Any]) -> str:
    return "\n".join(json.dumps(one, ensure_ascii=False) for one in records)


WRAPPINGS: dict[str, Callable[[list[Any]], str]] = {
    "lines": _lines,
    "windows lines": lambda records: _lines(records).replace("\n", "\r\n"),
    "blank lines between": lambda records: "\n\n" + _lines(records).replace("\n", "\n\n") + "\n\n",
    "two on a line": lambda records: _lines(records).replace("\n", "", 1),
    "all on one line": lambda records: _lines(records).replace("\n", " "),
    "lines with commas": lambda records: _lines(records).replace("\n", ",\n") + ",",
    "record separators": lambda records: "\x1e" + _lines(records).replace("\n", "\n\x1e"),
    "array": json.dumps,
    "indented array": lambda records: json.dumps(records, indent=2),
    "indented values": lambda records: "\n".join(json.dumps(one, indent=2) for one in records),
    "two arrays": lambda records: json.dumps(records[:1]) + json.dumps(records[1:]),
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("records", RECORDS)
def test_records_are_read_in_every_wrapping(tmp_path: Path, records: str, wrapping: str, encoding: str) -> None:
    file = tmp_path / "export.json"
    file.write_bytes(WRAPPINGS[wrapping](RECORDS[records]).encode(encoding))
    name, memories, bad, skipped = read(file)
    assert name == {"openmemory": "mem0"}.get(records, records)
    assert (len(memories), bad, skipped) == (3, [], {})


DAMAGES: list[tuple[Callable[[list[str]], list[str]], int]] = [
    (lambda lines: [lines[0][:-9], *lines[1:]], 2),
    (lambda lines: [lines[0], "}", *lines[1:]], 3),
    (lambda lines: ["{", *lines], 3),
    (lambda lines: ["[1,", *lines], 3),
    (lambda lines: [*lines[:2], lines[2][:-5]], 2),
    (lambda lines: [lines[0], "[" * 100_000, *lines[1:]], 3),
    (lambda lines: [lines[0], '"', lines[1], lines[2]], 3),
]


@pytest.mark.parametrize("records", RECORDS)
@pytest.mark.parametrize(("damage", "kept"), DAMAGES)
def test_a_damaged_line_is_named_and_the_others_are_read(
    tmp_path: Path, records: str, damage: Callable[[list[str]], list[str]], kept: int
) -> None:
    file = tmp_path / "export.jsonl"
    file.write_text("\n".join(damage(_lines(RECORDS[records]).split("\n"))))
    _, memories, bad, _ = read(file)
    assert bad
    assert {one.where.partition(":")[0] for one in bad} <= {"line 1", "line 2", "line 3", "line 4"}
    assert len(memories) == kept


def test_reading_a_damaged_file_takes_linear_time() -> None:
    def seconds(size: int) -> float:
        began = process_time()
        list(read_values(b'{"a":[\n' * size))
        return process_time() - began

    small, large = min(seconds(20_000) for _ in range(3)), seconds(160_000)
    assert large < 40 * max(small, 0.001)


def test_the_answer_of_read_graph_is_read(tmp_path: Path) -> None:
    bare = [{key: value for key, value in one.items() if key != "type"} for one in GRAPH]
    graph = {"entities": bare[:2], "relations": bare[2:]}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    name, memories, bad, _ = read(tmp_path / "graph.json")
    assert (name, bad) == ("mcp-memory", [])
    assert texts(memories) == ["Maria: Prefers tabs", "Atlas: Ships on Friday", "Maria works on Atlas."]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("[]", "empty"),
        ("{}", "empty"),
        ('{"results": []}', "mem0"),
        ('{"results": [], "relations": []}', "mem0"),
        ('{"memories": []}', "empty"),
        ('{"entities": [], "relations": []}', "mcp-memory"),
        ('{"export_metadata": {}, "memories": []}', "mcp-memory-service"),
        ('{"user": {}, "apps": [], "memories": [], "export_meta": {}}', "mem0"),
    ],
)
def test_an_empty_export_is_recognised(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "export.json").write_text(text)
    assert read(tmp_path / "export.json") == (name, [], [], {})


@pytest.mark.parametrize("as_archive", [True, False])
def test_openmemory_export_is_read_once(tmp_path: Path, as_archive: bool) -> None:
    deleted = {"id": "4", "content": "Gone", "state": "deleted", "deleted_at": "2026-01-01T00:00:00Z"}
    whole = {"user": {}, "apps": [], "memories": [*OPENMEMORY, deleted], "export_meta": {"version": "1"}}
    packed = gzip.compress(_lines([*OPENMEMORY, deleted]).encode())
    if as_archive:
        with zipfile.ZipFile(tmp_path / "memories_export.zip", "w") as archive:
            archive.writestr("memories.json", json.dumps(whole, indent=2))
            archive.writestr("memories.jsonl.gz", packed)
    else:
        (tmp_path / "memories.jsonl.gz").write_bytes(packed)
    name, memories, bad, skipped = read(tmp_path / ("memories_export.zip" if as_archive else "memories.jsonl.gz"))
    assert (name, texts(memories), bad) == ("mem0", [one["memory"] for one in MEM0], [])
    assert set(skipped) == {"deleted memory"}
    assert memories[0].metadata["app"] == "cursor"


def test_gzip_that_unpacks_to_far_more_than_it_has_is_refused(tmp_path: Path) -> None:
    bomb = gzip.compress(b" " * (200 << 20))
    (tmp_path / "memories.jsonl.gz").write_bytes(bomb)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w") as archive:
        archive.writestr("memories.jsonl.gz", bomb)
    for name in ("memories.jsonl.gz", "bomb.zip"):
        with pytest.raises(InvalidArgument, match="unpacks to far more"):
            detect(tmp_path / name)


def test_graph_relations_of_mem0_become_memories(tmp_path: Path) -> None:
    relation = {"source": "maria", "relationship": "works_on", "target": "atlas"}
    (tmp_path / "all.json").write_text(json.dumps({"results": MEM0, "relations": [relation]}))
    _, memories, bad, _ = read(tmp_path / "all.json")
    assert (texts(memories)[-1], bad) == ("maria works on atlas.", [])


def _said(content: dict[str, Any], role: str = "user", **message: Any) -> dict[str, Any]:
    return {"id": "m", "author": {"role": role}, "create_time": 1_750_000_000.0, "content": content, **message}


SPOKEN = [
    {"content_type": "audio_transcription", "text": "My locker code is 4471.", "direction": "in"},
    {"content_type": "audio_asset_pointer", "asset_pointer": "sediment://f"},
]
IMAGE = {"content_type": "image_asset_pointer", "asset_pointer": "sediment://i"}


@pytest.mark.parametrize(
    ("message", "memories", "skipped"),
    [
        (_said({"content_type": "multimodal_text", "parts": SPOKEN}), ["My locker code is 4471."], {}),
        (_said({"content_type": "multimodal_text", "parts": SPOKEN[1:]}), [], {"audio": 1}),
        (_said({"content_type": "multimodal_text", "parts": [IMAGE, "A cat."]}), ["A cat."], {"image": 1}),
        (_said({"content_type": "multimodal_text", "parts": [IMAGE, IMAGE]}), [], {"image": 2}),
        (_said({"content_type": "code", "text": "print(1)"}, "assistant"), ["print(1)"], {}),
        (_said({"content_type": "tether_quote", "title": "T", "text": "Quoted."}), ["Quoted."], {}),
        (_said({"content_type": "a_new_type", "parts": [{"text": "새로운 말"}]}), ["새로운 말"], {}),
        (_said({"content_type": "execution_output", "text": "1"}, "tool"), [], {"tool output": 1}),
        (_said({"content_type": "tether_browsing_display", "result": "Page"}, "tool"), [], {"tool output": 1}),
        (_said({"content_type": "text", "parts": ["Be kind."]}, "system"), [], {"message of system": 1}),
        (_said({"content_type": "text", "parts": [""]}, "system"), [], {}),
        (_said({"content_type": "thoughts", "thoughts": [{"content": "Hm."}]}, "assistant"), [], {"reasoning": 1}),
        (_said({"content_type": "text", "parts": ["Psst."]},
               metadata={"is_visually_hidden_from_conversation": True}), [], {"hidden message": 1}),
        (_said({"content_type": "user_editable_context", "user_profile": "I am a nurse.", "user_instructions": ""},
               metadata={"is_visually_hidden_from_conversation": True}), ["I am a nurse."], {}),
    ],
)  # fmt: skip
def test_chatgpt_text_of_every_kind_is_read(
    tmp_path: Path, message: dict[str, Any], memories: list[str], skipped: dict[str, int]
) -> None:
    talk = {"title": "Voice", "conversation_id": "v1", "current_node": "m",
            "mapping": {"m": {"id": "m", "message": message, "parent": None, "children": []}}}  # fmt: skip
    (tmp_path / "conversations.json").write_text(json.dumps([talk]))
    name, found, bad, passed_over = read(tmp_path / "conversations.json")
    assert (name, texts(found), bad, passed_over) == ("chatgpt", memories, [], skipped)
    assert all(one.source == "user" or one.source == message["author"]["role"] for one in found)


@pytest.mark.parametrize(
    ("content", "memories", "skipped"),
    [
        ([{"type": "voice_note", "title": "Note", "text": "Buy oars."}], ["Buy oars."], {}),
        ([{"type": "voice_note", "transcript": "Buy oars."}], ["Buy oars."], {}),
        ([{"type": "text", "text": "Look."}, {"type": "image", "source": {}}], ["Look."], {"image": 1}),
        ([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "So."}], ["So."], {"reasoning": 1}),
        ([{"type": "tool_use", "name": "web", "input": {}}, {"type": "tool_result", "content": "Page"},
          {"type": "text", "text": "So."}], ["So."], {"tool call": 1, "tool output": 1}),
        ([{"type": "a_new_type", "text": "새로운 말"}], ["새로운 말"], {}),
    ],
)  # fmt: skip
def test_claude_text_of_every_kind_is_read(
    tmp_path: Path, content: list[Any], memories: list[str], skipped: dict[str, int]
) -> None:
    message = {"uuid": "m", "sender": "human", "text": "", "content": content, "attachments": [], "files": []}
    (tmp_path / "conversations.json").write_text(json.dumps([{"uuid": "c", "name": "N", "chat_messages": [message]}]))
    name, found, bad, passed_over = read(tmp_path / "conversations.json")
    assert (name, texts(found), bad, passed_over) == ("claude", memories, [], skipped)


CLAUDE_MEMORIES = [
    {"conversations_memory": "Works at a harbour.", "project_memories": {"p1": "Uses oars."}, "account_uuid": "a"}
]
CLAUDE_PROJECT = {
    "uuid": "p1", "name": "Boats", "prompt_template": "Answer in knots.", "created_at": "2026-01-02T00:00:00Z",
    "docs": [{"uuid": "d1", "filename": "plan.md", "content": "The plan."}, {"uuid": "d2", "filename": "x"}],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["archive", "folder", "newer archive", "memories.json", "projects.json"])
def test_claude_memories_and_projects_are_read(tmp_path: Path, kind: str) -> None:
    conversations = json.loads(claude(tmp_path, 2).read_text())
    memories: Any = CLAUDE_MEMORIES[0] if kind == "newer archive" else CLAUDE_MEMORIES
    parts: dict[str, Any] = {
        "users.json": [{"uuid": "a", "email_address": "ann@example.com"}],
        "conversations.json": conversations,
        "memories/a.json" if kind == "newer archive" else "memories.json": memories,
        "projects/p1.json" if kind == "newer archive" else "projects.json":
            CLAUDE_PROJECT if kind == "newer archive" else [CLAUDE_PROJECT],
    }  # fmt: skip
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, value in parts.items():
            archive.writestr(name, json.dumps(value))
            archive.writestr(f"__MACOSX/._{name}", b"\x00\x05")
    target = tmp_path / "export"
    if "archive" in kind:
        target.write_bytes(packed.getvalue())
    else:
        zipfile.ZipFile(packed).extractall(target)
    name, found, bad, skipped = read(target / kind if kind.endswith(".json") else target)
    assert (name, bad) == ("claude", [])
    remembered, project = ["Works at a harbour.", "Uses oars."], ["Answer in knots.", "The plan."]
    expected = {"memories.json": remembered, "projects.json": project}.get(kind, [*remembered, *project])
    assert set(texts(found)) >= set(expected)
    assert len(found) == len(expected) + (0 if kind.endswith(".json") else 2)
    assert skipped == ({} if kind == "memories.json" else {"file": 1})
    if kind != "memories.json":
        document = next(one for one in found if one.content == "The plan.")
        assert (document.memory_type, document.source, document.context) == ("document", "plan.md", "Boats (p1)")


def test_document_on_one_long_line_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 1000)
    assert len(read(chatgpt(tmp_path, 40))[1]) == 40


def test_unknown_export_is_described(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"when": 1, "왜": "그냥"}]')
    with pytest.raises(InvalidArgument, match="unknown format: its first object has the keys 'when', "):
        detect(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(chatgpt(tmp_path, 4).read_text()[:-9])
    with pytest.raises(InvalidArgument, match="line 1: the file ends in the middle of conversation 1; 0 are whole"):
        detect(tmp_path / "b.json")


def test_folder_of_code_with_an_odd_json_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "projects.json").write_text("{ not json")
    (tmp_path / "memories.json").write_text("[]")
    (tmp_path / "main.py").write_text("print(1)")
    name, found, _, _ = read(tmp_path)
    assert name == "folder"
    assert "print(1)" in texts(found)
