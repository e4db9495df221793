"""Claude's data export: `conversations.json`, alone or in the archive or folder that it comes in.

Each message becomes a memory, and each attachment whose text is in the export a document.
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

_SPEAKERS = {"human": "user", "assistant": "assistant"}


def _matches(source: Source) -> bool:
    return "chat_messages" in first(source.documents)


def _read(source: Source) -> Iterator[Found]:
    for where, member in records(source.documents):
        messages: Any = member.get("chat_messages") if isinstance(member, dict) else None
        if not isinstance(messages, list):
            yield Bad(where, "chat_messages is missing")
            continue
        conversation = cast(dict[str, Any], member)
        for position, message in enumerate(cast(list[Any], messages)):
            yield from _turn(f"{where}.chat_messages[{position}]", message, conversation)


def _turn(where: str, message: Any, conversation: dict[str, Any]) -> Iterator[Found]:
    yield from gather(where, message, partial(_message, where=where, conversation=conversation))
    attached: Any = message.get("attachments") if isinstance(message, dict) else None
    for number, file in enumerate(cast(list[Any], attached) if isinstance(attached, list) else []):
        place = f"{where}.attachments[{number}]"
        make = partial(_attachment, where=place, number=number, message=message, conversation=conversation)
        yield from gather(place, file, make)


def _message(said: dict[str, Any], where: str, conversation: dict[str, Any]) -> Foreign | None:
    content = _content(said)
    if not content:
        return None
    return Foreign(
        where=where,
        source_id=str(said["uuid"]),
        content=content,
        memory_type=MemoryType.CONVERSATION,
        tags=("claude",),
        context=_context(conversation),
        source=_SPEAKERS.get(str(said["sender"]), label(said["sender"])),
        occurred_at=moment(said.get("created_at"), "created_at"),
        metadata=_of(conversation),
    )


def _content(said: dict[str, Any]) -> str:
    """Join what was said; the summary in `text` also names tools where there were any."""
    blocks: list[Any] = said.get("content") or []
    told = [block.get("text") for block in blocks if isinstance(block, dict) and block.get("type") == "text"]
    return "\n".join(one for one in told if isinstance(one, str)).strip() or str(said.get("text") or "").strip()


def _attachment(
    said: dict[str, Any], where: str, number: int, message: dict[str, Any], conversation: dict[str, Any]
) -> Foreign | None:
    content: Any = said.get("extracted_content")
    if not isinstance(content, str) or not content.strip():
        return None
    return Foreign(
        where=where,
        source_id=f"{message['uuid']}/{number}",
        content=content,
        memory_type=MemoryType.DOCUMENT,
        tags=("claude", "attachment"),
        context=_context(conversation),
        source=label(said.get("file_name")),
        occurred_at=moment(message.get("created_at"), "created_at"),
        metadata=_of(conversation),
    )


def _of(conversation: dict[str, Any]) -> dict[str, Any]:
    return without_nothing({"title": conversation.get("name"), "conversation_id": conversation.get("uuid")})


def _context(conversation: dict[str, Any]) -> str | None:
    title, known = label(conversation.get("name")) or "untitled", str(conversation.get("uuid") or "")
    return label(f"{title[:60]} ({known[:8]})" if known else title)


FORMAT = Format("claude", _matches, _read)
