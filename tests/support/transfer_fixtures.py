"""Generates small exports of other memory servers and chat services in their documented formats."""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WORDS = "harbour lantern gravel meadow violet copper winter saddle orchard thunder velvet candle ribbon marble".split()
BEGUN = 1_700_000_000


def sentence(number: int) -> str:
    """A unique sentence: its number is a separate word in it."""
    chance = random.Random(number)
    return f"{' '.join(chance.choices(WORDS, k=8)).capitalize()} mark{number}."


def _id(number: int) -> str:
    return str(uuid.UUID(int=random.Random(number).getrandbits(128)))


def _iso(number: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(BEGUN + number, UTC).isoformat().replace("+00:00", "Z")


def mcp_memory(to: Path, size: int) -> Path:
    """The reference server's memory.jsonl: entities with four observations each, and relations between them."""
    lines: list[dict[str, Any]] = []
    entities = max(1, size // 5)
    for number in range(entities):
        seen = [sentence(number * 4 + part) for part in range(4)]
        lines.append({"type": "entity", "name": f"Thing {number}", "entityType": "object", "observations": seen})
    for number in range(size - 4 * entities):
        ends = {"from": f"Thing {number % entities}", "to": f"Thing {(number + 1) % entities}"}
        lines.append({"type": "relation", **ends, "relationType": f"stands_before_{number}"})
    file = to / "memory.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file


def mcp_memory_service(to: Path, size: int) -> Path:
    """The export of mcp-memory-service 12.4 (sync/exporter.py)."""
    memories = [
        {
            "content": sentence(number),
            "content_hash": hashlib.sha256(sentence(number).encode()).hexdigest(),
            "tags": ["source:laptop", f"topic{number % 7}"],
            "created_at": BEGUN + number + 0.25,
            "updated_at": BEGUN + number + 0.5,
            "memory_type": "note",
            "metadata": {"quality": 0.5},
            "store": "default",
            "export_source": "laptop",
        }
        for number in range(size)
    ]
    metadata = {
        "source_machine": "laptop", "export_timestamp": "2026-01-01T00:00:00", "total_memories": size,
        "database_path": "unknown", "platform": "Linux", "python_version": "3.12.0", "include_embeddings": False,
        "filter_tags": None, "stores": ["default"], "exporter_version": "5.0.1",
    }  # fmt: skip
    return _document(to, {"export_metadata": metadata, "memories": memories})


def mem0(to: Path, size: int) -> Path:
    """The result of `Memory.get_all` in mem0 2.2 (memory/main.py)."""
    results = [
        {
            "id": _id(number),
            "memory": sentence(number),
            "hash": hashlib.md5(sentence(number).encode()).hexdigest(),
            "metadata": {"mood": "calm"},
            "created_at": _iso(number),
            "updated_at": None,
            "user_id": "dev",
            "run_id": f"run-{number % 9}",
        }
        for number in range(size)
    ]
    return _document(to, {"results": results})


def chatgpt(to: Path, size: int, turns: int = 20) -> Path:
    """ChatGPT's conversations.json: trees, each with a hidden root and a question that was edited once."""
    return _document(to, [_tree(start, min(turns, size - start)) for start in range(0, size, turns)], "conversations")


def _tree(start: int, turns: int) -> dict[str, Any]:
    root, mapping, parent = _id(-start - 1), dict[str, Any](), _id(-start - 1)
    mapping[root] = {"id": root, "message": None, "parent": None, "children": []}
    mapping["edited"] = _node("edited", root, "user", "What was asked at first.", BEGUN)
    for number in range(start, start + turns):
        node = _id(number)
        mapping[node] = _node(node, parent, ("user", "assistant")[number % 2], sentence(number), BEGUN + number)
        mapping[parent]["children"].append(node)
        parent = node
    return {
        "title": "New chat", "create_time": BEGUN + start, "update_time": BEGUN + start + turns, "mapping": mapping,
        "current_node": parent, "conversation_id": _id(10_000_000 + start), "is_archived": False,
    }  # fmt: skip


def _node(node: str, parent: str, role: str, text: str, at: float) -> dict[str, Any]:
    message = {
        "id": node, "author": {"role": role, "name": None, "metadata": {}}, "create_time": at, "update_time": None,
        "content": {"content_type": "text", "parts": [text]}, "status": "finished_successfully", "weight": 1.0,
        "metadata": {"model_slug": "gpt-4o"} if role == "assistant" else {}, "recipient": "all",
    }  # fmt: skip
    return {"id": node, "message": message, "parent": parent, "children": []}


def claude(to: Path, size: int, turns: int = 20) -> Path:
    """Claude's conversations.json."""
    conversations = [
        {
            "uuid": _id(20_000_000 + start),
            "name": "Of harbours",
            "created_at": _iso(start),
            "updated_at": _iso(start + turns),
            "account": {"uuid": _id(1)},
            "chat_messages": [_turn(number) for number in range(start, min(start + turns, size))],
        }
        for start in range(0, size, turns)
    ]
    return _document(to, conversations, "conversations")


def _turn(number: int) -> dict[str, Any]:
    return {
        "uuid": _id(number), "text": sentence(number), "sender": ("human", "assistant")[number % 2],
        "content": [{"type": "text", "text": sentence(number), "citations": []}],
        "created_at": _iso(number), "updated_at": _iso(number), "attachments": [], "files": [],
    }  # fmt: skip


def folder(to: Path, size: int) -> Path:
    """Notes and code in some folders, next to files that the import skips."""
    root = to / "notes"
    for number in range(size):
        place = root / f"part{number % 20}"
        place.mkdir(parents=True, exist_ok=True)
        name = f"note{number}.md" if number % 2 else f"tool{number}.py"
        (place / name).write_text(f"# {sentence(number)}\n")
    hidden = root / ".git"
    hidden.mkdir(parents=True, exist_ok=True)
    (hidden / "config.md").write_text("not a note")
    (root / "picture.png").write_bytes(b"\x89PNG")
    return root


def _document(to: Path, document: Any, name: str = "export") -> Path:
    file = to / f"{name}.json"
    file.write_text(json.dumps(document))
    return file


FORMATS: dict[str, Callable[[Path, int], Path]] = {
    "mcp-memory": mcp_memory,
    "mcp-memory-service": mcp_memory_service,
    "mem0": mem0,
    "chatgpt": chatgpt,
    "claude": claude,
    "folder": folder,
}


def all_formats() -> Iterator[str]:
    """Return all formats by name."""
    yield from FORMATS
