"""ChatGPT's data export: `conversations.json`, alone or in its archive or folder.

Reads the messages of the person and the assistant on the current branch of each conversation. Leaves out messages of
tools, hidden messages, and messages that were replaced by editing or regenerating.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from memory_core.records.memory import MemoryType
from memory_server.transfer import foreign
from memory_server.transfer.foreign import Bad, Foreign, Format, Found, Source

_SPEAKERS = ("user", "assistant")
_TYPES = ("text", "multimodal_text", "code")


def _read(source: Source) -> Iterator[Found]:
    for where, member in foreign.records(source.documents):
        mapping: Any = member.get("mapping") if isinstance(member, dict) else None
        if not isinstance(mapping, dict):
            yield Bad(where, "mapping is missing")
            continue
        conversation, nodes = cast(dict[str, Any], member), cast(dict[str, Any], mapping)
        for node in _branch(conversation, nodes):
            place = f"{where}.mapping[{foreign.label(node)}]"
            yield from foreign.gather(place, nodes[node], partial(_message, conversation=conversation))


def _branch(conversation: dict[str, Any], mapping: dict[str, Any]) -> list[str]:
    """Return the nodes from the first to the current one, or all nodes if the current one is unknown."""
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
        context=foreign.conversation_context(conversation.get("title"), known),
        source=role,
        occurred_at=foreign.moment(message.get("create_time") or conversation.get("create_time"), "create_time"),
        metadata=foreign.without_empty(
            {"title": conversation.get("title"), "conversation_id": known, "model": metadata.get("model_slug")}
        ),
    )


def _content(content: dict[str, Any]) -> str:
    if content.get("content_type", "text") not in _TYPES:
        return ""
    parts: list[Any] = content.get("parts") or [content.get("text")]
    return "\n".join(part for part in parts if isinstance(part, str)).strip()


FORMAT = Format("chatgpt", lambda source: "mapping" in foreign.first(source.documents), _read)
