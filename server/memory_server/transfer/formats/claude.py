"""Claude's data export: `conversations.json`, `memories.json` and `projects.json`, each alone or in archive or folder.

Each message, each memory and each project's instructions become a memory. Attachments with text and the documents of
projects become documents. Counts what it passes over: tool calls and their output, reasoning, files without text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

from memory_core.records.memory import MemoryType
from memory_server.transfer import foreign
from memory_server.transfer.foreign import Bad, Foreign, Format, Found, PassedOver
from memory_server.transfer.source import Source

_SPEAKERS = {"human": "user", "assistant": "assistant"}
_KINDS = {
    "tool_use": "tool call", "tool_result": "tool output", "thinking": "reasoning", "redacted_thinking": "reasoning",
}  # fmt: skip
"""Blocks that make no memory, although some carry text."""
_PROJECT = {"prompt_template", "docs"}
_ACCOUNT = {"email_address", "verified_phone_number"}


def _matches(source: Source) -> bool:
    return any(map(_reader, foreign.objects(source)))


def _read(source: Source) -> Iterator[Found]:
    for document in foreign.contents(source):
        if isinstance(document, Bad):
            yield document
            continue
        for _, where, member in foreign.records(document):
            record = cast(dict[str, Any], member) if isinstance(member, dict) else {}
            if reader := _reader(record):
                yield from reader(where, record)
            elif record.keys() & _ACCOUNT:
                yield PassedOver("account record", is_lost=False)
            else:
                yield Bad(where, "chat_messages is missing")


def _reader(record: dict[str, Any]) -> Callable[[str, dict[str, Any]], Iterator[Found]] | None:
    if isinstance(record.get("chat_messages"), list):
        return _conversation
    if "conversations_memory" in record or "project_memories" in record:
        return _memories
    return _project if "uuid" in record and record.keys() & _PROJECT else None


def _conversation(where: str, conversation: dict[str, Any]) -> Iterator[Found]:
    for position, message in enumerate(cast(list[Any], conversation["chat_messages"])):
        yield from _turn(f"{where}.chat_messages[{position}]", message, conversation)


def _turn(where: str, message: Any, conversation: dict[str, Any]) -> Iterator[Found]:
    yield from foreign.gather(where, message, partial(_message, conversation=conversation))
    if not isinstance(message, dict):
        return
    turn = cast(dict[str, Any], message)
    for block in _members(turn, "content"):
        if isinstance(block, dict) and _block(block) is None:
            kind = str(cast(dict[str, Any], block).get("type"))
            yield PassedOver(_KINDS.get(kind) or str(foreign.label(kind)).replace("_", " "))
    attachments, named = _members(turn, "attachments"), set[Any]()
    for number, file in enumerate(attachments):
        make = partial(_attachment, number=number, message=turn, conversation=conversation)
        yield from foreign.gather(f"{where}.attachments[{number}]", file, make)
        named.add(foreign.label(file.get("file_name")) if isinstance(file, dict) else None)
    for file in _members(turn, "files"):
        if isinstance(file, dict) and foreign.label(cast(dict[str, Any], file).get("file_name")) not in named:
            yield PassedOver("file")


def _members(record: dict[str, Any], name: str) -> list[Any]:
    found = record.get(name)
    return cast(list[Any], found) if isinstance(found, list) else []


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
    """Join the blocks with text. The summary in `text` is the last resort, because it also names tools."""
    texts = map(_block, _members(message, "content"))
    return "\n".join(text for text in texts if text) or str(message.get("text") or "").strip()


def _block(block: Any) -> str | None:
    is_skipped = isinstance(block, dict) and cast(dict[str, Any], block).get("type") in _KINDS
    return None if is_skipped else foreign.block_text(block)


def _attachment(
    attachment: dict[str, Any], where: str, number: int, message: dict[str, Any], conversation: dict[str, Any]
) -> Foreign | PassedOver:
    content: Any = attachment.get("extracted_content")
    if not isinstance(content, str) or not content.strip():
        return PassedOver("file")
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


def _memories(where: str, record: dict[str, Any]) -> Iterator[Found]:
    """Read what Claude remembers across conversations, and for each project."""
    account, projects = str(record.get("account_uuid") or ""), record.get("project_memories") or {}
    texts: list[tuple[str, Any]] = [("", record.get("conversations_memory"))]
    if isinstance(projects, dict):
        texts += cast(dict[str, Any], projects).items()
    else:
        yield Bad(f"{where}.project_memories", "it is not an object")
    for project, value in texts:
        if text := foreign.block_text(value):
            yield Foreign(
                where=where,
                source_id=f"memory/{account}/{project}",
                content=text,
                tags=("claude", "memory"),
                context=foreign.conversation_context("Claude project" if project else "Claude memory", project),
                source="assistant",
            )


def _project(where: str, project: dict[str, Any]) -> Iterator[Found]:
    """Read the instructions and the documents of a project."""
    yield from foreign.gather(where, project, _instructions)
    for number, document in enumerate(_members(project, "docs")):
        yield from foreign.gather(f"{where}.docs[{number}]", document, partial(_document, project=project))


def _instructions(project: dict[str, Any], where: str) -> Foreign | None:
    texts = [foreign.block_text(project.get(name)) for name in ("description", "prompt_template")]
    content = "\n\n".join(text for text in texts if text)
    if not content:
        return None
    return Foreign(
        where=where,
        source_id=f"project/{project['uuid']}",
        content=content,
        tags=("claude", "project"),
        context=_context(project),
        source="user",
        occurred_at=foreign.moment(project.get("created_at"), "created_at"),
        metadata=_metadata(project),
    )


def _document(document: dict[str, Any], where: str, project: dict[str, Any]) -> Foreign | PassedOver:
    content = foreign.block_text(document.get("content"))
    if content is None:
        return PassedOver("file")
    return Foreign(
        where=where,
        source_id=f"project/{project['uuid']}/{document.get('uuid') or document.get('filename')}",
        content=content,
        memory_type=MemoryType.DOCUMENT,
        tags=("claude", "project"),
        context=_context(project),
        source=foreign.label(document.get("filename")),
        occurred_at=foreign.moment(document.get("created_at"), "created_at"),
        metadata=_metadata(project),
    )


def _metadata(holder: dict[str, Any]) -> dict[str, Any]:
    """Title and id of a conversation or a project."""
    kind = "conversation_id" if "chat_messages" in holder else "project_id"
    return foreign.without_empty({"title": holder.get("name"), kind: holder.get("uuid")})


def _context(holder: dict[str, Any]) -> str | None:
    title = foreign.label(holder.get("name")) or "untitled"
    return foreign.conversation_context(title, str(holder.get("uuid") or ""))


FORMAT = Format("claude", _matches, _read)
