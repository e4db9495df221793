"""Lets further agents read a memory that was written for them, such as the result of a task that their task needs."""

from __future__ import annotations

from memory_core.records.keys import Keys
from memory_core.records.memory import Record, Visibility
from memory_core.records.scope import reader_token
from memory_server.index import loader
from memory_server.index.loader import Ref
from memory_server.memories.chunks import settle_or_tell
from memory_server.memories.services import MemoryServices

_MOST_READERS = 64


async def add_reader(service: MemoryServices, namespace: str, memory_id: str, context: str, reader: str) -> bool:
    """Let the holder of an owner id read a memory of a context. Returns whether it may.

    Private and sensitive memories, and those that fail their integrity check, get no readers. A change meanwhile wins.
    """
    keys, integrity, token = Keys(namespace), service.backend.integrity, reader_token(reader)
    found = await service.backend.read(lambda client: loader.load(client, keys, [Ref(memory_id)], integrity))
    record = found[0] if found else None
    if record is None or record.context != context or not _takes_readers(record):
        return False
    if token in record.scope:
        return True
    answer = await service.backend.write(
        "rm1_add_reader",
        [keys.memory(memory_id), keys.chores, keys.events],
        repeatable=True,
        id=memory_id,
        rev=record.rev,
        reader=token,
        by=record.writer,
        seal=integrity.seal(namespace, memory_id, record.rev),
        was=integrity.seal(namespace, memory_id, record.rev, record.signer) if record.signer else None,
    )
    if answer["status"] == "added" and record.chunks > 1:
        await settle_or_tell(service, namespace, f"{memory_id}:{record.chunks}")
    return answer["status"] == "added"


def _takes_readers(record: Record) -> bool:
    readers = sum(token.startswith("r:") for token in record.scope)
    return not record.is_sensitive and record.visibility is not Visibility.PRIVATE and readers < _MOST_READERS
