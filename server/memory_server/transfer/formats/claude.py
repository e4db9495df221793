"""Claude's data export: `conversations.json`, alone or in its archive or folder.

Each message becomes a memory. Each attachment whose text is in the export becomes a document.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from memory_core.records.memory import MemoryType
from memory_server.transfer import foreign
from memory_server.transfer.foreign import Bad, Foreign, Format, Found, Source

_SPEAKERS = {"human": "user", "assistant": "assistant"}


def _read(source: Source) -> Iterator[Found]:
    for where, member in foreign.records(source.documents):
        messages: Any = member.get("chat_messages") if isinstance(member, dict) else None
        if not isinstance(messages, list):
            yield Bad(where, "chat_messages is missing")
            continue
        conversation = cast(dict[str, Any], member)
        for position, message in enumerate(cast(list[Any], messages)):
            yield from _turn(f"{where}.chat_messages[{position}]", message, conversation)


def _turn(where: str, message: Any, conversation: dict[str, Any]) -> Iterator[Found]:
    yield from foreign.gather(where, message, partial(_message, conversation=conversation))
    attached: Any = message.get("attachments") if isinstance(message, dict) else None
    for number, file in enumerate(cast(list[Any], attached) if isinstance(attached, list) else []):
        place = f"{where}.attachments[{number}]"
        make = partial(_attachment, number=number, message=message, conversation=conversation)
        yield from foreign.gather(place, file, make)


def _message(message: dict[str, Any], where: str, conversation: dict[str, Any]) -> Foreign | None:
    content = _content(message)
    if not content:
        return None
    return Foreign(
        where=where,
        source_id=str(message["uuid"]),
        content=content,
        memory_type=MemoryType.CONVERSATION,
        tags=("claude",),
        context=_context(conversation),
        source=_SPEAKERS.get(str(message["sender"]), foreign.label(message["sender"])),
        occurred_at=foreign.moment(message.get("created_at"), "created_at"),
        metadata=_metadata(conversation),
    )


def _content(message: dict[str, Any]) -> str:
    """Join the text blocks. The summary in `text` is the last resort, because it also names tools."""
    blocks: list[Any] = message.get("content") or []
    texts = [block.get("text") for block in blocks if isinstance(block, dict) and block.get("type") == "text"]
    return "\n".join(one for one in texts if isinstance(one, str)).strip() or str(message.get("text") or "").strip()


def _attachment(
    attachment: dict[str, Any], where: str, number: int, message: dict[str, Any], conversation: dict[str, Any]
) -> Foreign | None:
    content: Any = attachment.get("extracted_content")
    if not isinstance(content, str) or not content.strip():
        return None
    return Foreign(
        where=where,
        source_id=f"{message['uuid']}/{number}",
        content=content,
        memory_type=MemoryType.DOCUMENT,
        tags=("claude", "attachment"),
        context=_context(conversation),
        source=foreign.label(attachment.get("file_name")),
        occurred_at=foreign.moment(message.get("created_at"), "created_at"),
        metadata=_metadata(conversation),
    )


def _metadata(conversation: dict[str, Any]) -> dict[str, Any]:
    return foreign.without_empty({"title": conversation.get("name"), "conversation_id": conversation.get("uuid")})


def _context(conversation: dict[str, Any]) -> str | None:
    title = foreign.label(conversation.get("name")) or "untitled"
    return foreign.conversation_context(title, str(conversation.get("uuid") or ""))


FORMAT = Format("claude", lambda source: "chat_messages" in foreign.first(source.documents), _read)
