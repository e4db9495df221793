"""ChatGPT's data export: `conversations.json`, alone or in its archive or folder.

Reads the text of the person's and the assistant's messages on the current branch of each conversation: typed, spoken,
quoted. Counts what it passes over: images, tool output, reasoning, hidden messages, and messages that were replaced by
editing or regenerating.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from memory_core.records.memory import MemoryType
from memory_server.transfer import foreign
from memory_server.transfer.foreign import Bad, Foreign, Format, Found, PassedOver
from memory_server.transfer.source import Source

_SPEAKERS = ("user", "assistant")
_REASONING = ("thoughts", "reasoning_recap")
_INSTRUCTIONS = ("user_profile", "user_instructions")
"""The fields of a person's own instructions, which a hidden message repeats in each conversation."""


def _read(source: Source) -> Iterator[Found]:
    for document in foreign.contents(source):
        if isinstance(document, Bad):
            yield document
            continue
        for _, where, member in foreign.records(document):
            mapping: Any = member.get("mapping") if isinstance(member, dict) else None
            if isinstance(mapping, dict):
                yield from _conversation(where, member, cast(dict[str, Any], mapping))
            elif isinstance(member, dict) and document.where and "mapping" not in member:
                yield PassedOver("other record")
            else:
                yield Bad(where, "mapping is missing")


def _conversation(where: str, conversation: dict[str, Any], nodes: dict[str, Any]) -> Iterator[Found]:
    branch = _branch(conversation, nodes)
    for node in branch:
        yield from _node(f"{where}.mapping[{foreign.label(node)}]", nodes[node], conversation)
    for node in nodes.keys() - set(branch):
        if any(isinstance(found, Foreign) for found in _node("", nodes[node], conversation)):
            yield PassedOver("replaced message", is_lost=False)


def _node(where: str, node: Any, conversation: dict[str, Any]) -> Iterator[Found]:
    yield from foreign.gather(where, node, partial(_message, conversation=conversation))
    message: Any = node.get("message") if isinstance(node, dict) else None
    if isinstance(message, dict) and _is_read(cast(dict[str, Any], message)):
        yield from _skipped_parts(cast(dict[str, Any], message))


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


def _message(node: dict[str, Any], where: str, conversation: dict[str, Any]) -> Foreign | PassedOver | None:
    message = node.get("message")
    if message is None:
        return None
    role, metadata = message["author"]["role"], message.get("metadata") or {}
    fields: dict[str, Any] = message.get("content") or {}
    content = _content(fields)
    if not content:
        return None
    if instructions := _instructions(fields):
        return _instruction(where, instructions)
    if skipped := _skipped(role, fields, metadata):
        return skipped
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


def _is_read(message: dict[str, Any]) -> bool:
    """Whether a message is one of those that become memories."""
    author, metadata = message.get("author"), message.get("metadata") or {}
    role: Any = author.get("role") if isinstance(author, dict) else None
    return role in _SPEAKERS and not metadata.get("is_visually_hidden_from_conversation")


def _skipped(role: Any, content: dict[str, Any], metadata: dict[str, Any]) -> PassedOver | None:
    if metadata.get("is_visually_hidden_from_conversation"):
        return PassedOver("hidden message", is_lost=False)
    if role not in _SPEAKERS:
        return PassedOver("tool output" if role == "tool" else f"message of {foreign.label(role)}")
    return PassedOver("reasoning") if content.get("content_type") in _REASONING else None


def _instruction(where: str, text: str) -> Foreign:
    return Foreign(
        where=where,
        source_id=json.dumps(["instructions", text]),
        content=text,
        tags=("chatgpt", "instructions"),
        source="user",
    )


def _instructions(content: dict[str, Any]) -> str:
    return "\n".join(text for name in _INSTRUCTIONS if (text := foreign.block_text(content.get(name))))


def _content(content: dict[str, Any]) -> str:
    """Return the text of all parts, whatever their types."""
    parts: list[Any] = content.get("parts") or content.get("thoughts") or []
    texts = [*map(foreign.block_text, parts), foreign.block_text(content), foreign.block_text(content.get("result"))]
    return "\n".join(text for text in texts if text) or _instructions(content)


def _skipped_parts(message: dict[str, Any]) -> Iterator[PassedOver]:
    """Yield the parts without text. The recording of a transcription is not one: what was said is kept."""
    content: Any = message.get("content")
    parts: Any = content.get("parts") if isinstance(content, dict) else None
    known = [part for part in cast(list[Any], parts if isinstance(parts, list) else []) if isinstance(part, dict)]
    is_transcribed = any(map(foreign.block_text, known))
    for part in cast(list[dict[str, Any]], known):
        kind = str(foreign.label(part.get("content_type")) or "part without a type")
        if not foreign.block_text(part) and not (is_transcribed and kind.startswith(("audio", "real_time"))):
            yield PassedOver(kind.removesuffix("_asset_pointer").replace("_", " "))


FORMAT = Format("chatgpt", lambda source: any("mapping" in one for one in foreign.objects(source)), _read)
