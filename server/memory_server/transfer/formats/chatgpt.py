"""ChatGPT's data export: `conversations.json`, alone or in the archive or folder that it comes in.

What the person and the assistant said on the branch that the conversation was left at; not what tools said, what was
hidden, nor what was replaced by editing or regenerating.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from memory_core.records.memory import MemoryType
from memory_server.transfer.foreign import (
    Bad,
    Foreign,
    Format,
    Found,
    Source,
    first,
    gather,
    label,
    moment,
    records,
    without_nothing,
)

_SPEAKERS = ("user", "assistant")
_TYPES = ("text", "multimodal_text", "code")


def _matches(source: Source) -> bool:
    return "mapping" in first(source.documents)


def _read(source: Source) -> Iterator[Found]:
    for where, member in records(source.documents):
        mapping: Any = member.get("mapping") if isinstance(member, dict) else None
        if not isinstance(mapping, dict):
            yield Bad(where, "mapping is missing")
            continue
        conversation, nodes = cast(dict[str, Any], member), cast(dict[str, Any], mapping)
        for node in _branch(conversation, nodes):
            place = f"{where}.mapping[{label(node)}]"
            yield from gather(place, nodes[node], partial(_message, where=place, conversation=conversation))


def _branch(conversation: dict[str, Any], mapping: dict[str, Any]) -> list[str]:
    """Give the nodes from the first to the current one; all of them in their order where that is not known."""
    node: Any = conversation.get("current_node")
    found: list[str] = []
    seen: set[str] = set()
    while isinstance(node, str) and node in mapping and node not in seen:
        found.append(node)
        seen.add(node)
        entry: Any = mapping[node]
        node = entry.get("parent") if isinstance(entry, dict) else None
    return found[::-1] or list(mapping)


def _message(node: dict[str, Any], where: str, conversation: dict[str, Any]) -> Foreign | None:
    message: Any = node.get("message")
    if message is None:
        return None
    role, metadata = message["author"]["role"], message.get("metadata") or {}
    content = _content(message.get("content") or {})
    if role not in _SPEAKERS or not content or metadata.get("is_visually_hidden_from_conversation"):
        return None
    known = str(conversation.get("conversation_id") or conversation.get("id") or "")
    return Foreign(
        where=where,
        source_id=str(message["id"]),
        content=content,
        memory_type=MemoryType.CONVERSATION,
        tags=("chatgpt",),
        context=_context(conversation.get("title"), known),
        source=role,
        occurred_at=moment(message.get("create_time") or conversation.get("create_time"), "create_time"),
        metadata=without_nothing(
            {
                "title": conversation.get("title"),
                "conversation_id": known,
                "model": metadata.get("model_slug"),
            }
        ),
    )


def _content(said: dict[str, Any]) -> str:
    if said.get("content_type", "text") not in _TYPES:
        return ""
    parts: list[Any] = said.get("parts") or [said.get("text")]
    return "\n".join(part for part in parts if isinstance(part, str)).strip()


def _context(title: Any, known: str) -> str | None:
    return label(f"{(label(title) or 'untitled')[:60]} ({known[:8]})" if known else title)


FORMAT = Format("chatgpt", _matches, _read)
