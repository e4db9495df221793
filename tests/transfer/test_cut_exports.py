"""A file that ends too early is refused in plain words: what is wrong, where, and what was whole."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.transfer_fixtures import chatgpt, claude, mcp_memory, mcp_memory_service, mem0

from memory_core.errors import InvalidArgument
from memory_server.transfer.detection import detect
from memory_server.transfer.foreign import Bad, Foreign

MAKERS = {
    "chatgpt": chatgpt,
    "claude": claude,
    "mem0": mem0,
    "mcp-memory": mcp_memory,
    "mcp-memory-service": mcp_memory_service,
}
ENDS = re.compile(
    r"the file ends (in the middle of (conversation|record) \d+|after (conversation|record) \d+, without its end); "
    r"(1 is|[\d,]+ are) whole"
)
CUTS = 10


def _indented(data: bytes) -> bytes:
    return json.dumps(json.loads(data), indent=2, ensure_ascii=False).encode()


def _of_lines(data: bytes) -> bytes:
    """Write each member of an array on a line of its own, as `jq -c` and some exports do."""
    value = json.loads(data)
    if not isinstance(value, list):
        return data
    return b"[\n" + b",\n".join(json.dumps(one).encode() for one in value) + b"\n]"


SHAPES: dict[str, Callable[[bytes], bytes]] = {"as exported": bytes, "indented": _indented, "lines": _of_lines}


def problem(path: Path, name: str) -> tuple[str, int]:
    """Return what an import says of a file that cannot be read whole, and how many memories it has nevertheless."""
    try:
        source, known = detect(path)
    except InvalidArgument as error:
        return error.message, 0
    assert known is not None
    assert known.name == name
    found = list(known.read(source))
    (bad,) = [one for one in found if isinstance(one, Bad)]
    return f"{bad.where}: {bad.reason}", sum(isinstance(one, Foreign) for one in found)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MAKERS)
def test_cut_export_says_where_it_ends(tmp_path: Path, name: str, shape: str) -> None:
    original = MAKERS[name](tmp_path, 100).read_bytes()
    if name == "mcp-memory" and shape != "as exported":
        original = json.dumps([json.loads(line) for line in original.splitlines()]).encode()
    whole = SHAPES[shape](original)
    file, read = tmp_path / "cut.json", list[int]()
    for number in range(CUTS):
        file.write_bytes(whole[: len(whole) * (2 * number + 1) // (2 * CUTS)])
        said, memories = problem(file, name)
        assert ENDS.search(said), said
        assert memories or "nothing was imported" in said
        read.append(memories)
    assert read == sorted(read)
    assert 0 < read[-1] < 100


@pytest.mark.parametrize("cut", range(1, 40))
def test_cut_at_any_byte_is_told(tmp_path: Path, cut: int) -> None:
    value = [{"id": "1", "memory": '金\\"é', "n": [1.5e3, True, None]}, {"id": "2", "memory": "\ud83d\ude00", "n": -2}]
    whole = (
        json.dumps(value, ensure_ascii=True).encode() if cut % 2 else json.dumps(value[:1], ensure_ascii=False).encode()
    )
    (tmp_path / "cut.json").write_bytes(whole[:-cut])
    said, _ = problem(tmp_path / "cut.json", "mem0")
    assert ENDS.search(said), said


def test_cut_counts_the_conversations_before_it(tmp_path: Path) -> None:
    text = chatgpt(tmp_path, 60).read_text()
    (tmp_path / "cut.json").write_text(text[: len(text) * 5 // 6])
    said, memories = problem(tmp_path / "cut.json", "chatgpt")
    assert said == "line 1: the file ends in the middle of conversation 3; 2 are whole"
    assert memories == 40


def test_cut_compressed_export_is_told(tmp_path: Path) -> None:
    data = chatgpt(tmp_path, 60).read_bytes()
    packed = tmp_path / "export.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", data)
    whole = {"export.zip": packed.read_bytes(), "conversations.json.gz": gzip.compress(data)}
    for name, content in whole.items():
        for part in range(1, CUTS):
            (tmp_path / name).write_bytes(content[: len(content) * part // CUTS])
            with pytest.raises(InvalidArgument, match=r"ends before its data does.*nothing was imported"):
                detect(tmp_path / name)


GRAPH: dict[str, Any] = {
    "entities": [{"name": "Maria", "entityType": "person", "observations": ["Prefers tabs"]}],
    "relations": [{"from": "Maria", "to": "Atlas", "relationType": "works_on"}],
}
BLOCKS = [{"type": "text", "text": json.dumps(GRAPH, indent=2)}]
ANSWERS: dict[str, Any] = {
    "blocks": BLOCKS,
    "one block": BLOCKS[0],
    "answer": {"content": BLOCKS},
    "answer with a structure": {"content": BLOCKS, "structuredContent": GRAPH, "isError": False},
    "structure alone": {"content": [], "structuredContent": GRAPH},
    "JSON-RPC": {"jsonrpc": "2.0", "id": 1, "result": {"content": BLOCKS, "isError": False}},
    "text": json.dumps(GRAPH),
}


@pytest.mark.parametrize("shape", ANSWERS)
def test_saved_answer_of_a_tool_is_read(tmp_path: Path, shape: str) -> None:
    (tmp_path / "memory.jsonl").write_text(json.dumps(ANSWERS[shape]))
    source, known = detect(tmp_path / "memory.jsonl")
    assert known is not None
    assert known.name == "mcp-memory"
    found = list(known.read(source))
    assert [one.content for one in found if isinstance(one, Foreign)] == [
        "Maria: Prefers tabs",
        "Maria works on Atlas.",
    ]
    assert not [one for one in found if isinstance(one, Bad)]


def test_cut_answer_of_a_tool_is_told(tmp_path: Path) -> None:
    many = {"entities": GRAPH["entities"] * 9}
    (tmp_path / "memory.jsonl").write_text(json.dumps([{"type": "text", "text": json.dumps(many)[:-50]}]))
    said, memories = problem(tmp_path / "memory.jsonl", "mcp-memory")
    assert ENDS.search(said), said
    assert memories == 8
