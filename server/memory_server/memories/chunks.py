"""Keeps the further pieces of long memories in step with their memory, slice by slice.

A memory changes in one Function and leaves a chore, `<id>:<pieces that may exist>`; settling it writes, rewrites or
removes the pieces. It may be done twice, and by whoever finds the chore: the sweeper takes those left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memory_core.crypto.integrity import Integrity
from memory_core.errors import MemoryServiceError, StoreUnavailable
from memory_core.records.keys import Keys
from memory_core.records.memory import Record, filter_fields
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix
from memory_core.store.connection import Client
from memory_server.engine.backend import Backend
from memory_server.engine.integrity_report import tampered
from memory_server.index import loader
from memory_server.index.loader import Ref
from memory_server.memories.forms import Form, flat, form_of, signed_elsewhere
from memory_server.memories.services import MemoryServices
from memory_server.memories.splitter import split

_SLICE = 8
"""Pieces written by one Function call: each may insert a vector into the graph."""
_ATTEMPTS = 10
_IN_THREAD = 20_000
_OPTIONAL = ("tags", "context", "source", "occurred_at")


async def split_content(content: str) -> list[str]:
    """Split a content; a long one in a thread, so that others do not wait."""
    if len(content) < _IN_THREAD:
        return split(content)
    return await asyncio.to_thread(split, content)


@dataclass(frozen=True, slots=True)
class Cut:
    """A content cut into pieces, with their vectors where they are known: shape (pieces, dimension), of `model`."""

    content: str
    pieces: Sequence[str]
    vectors: Matrix | None = None
    model: Model | None = None


async def settle(service: MemoryServices, namespace: str, chore: str, cut: Cut | None = None) -> None:
    """Bring all further pieces of a memory up to date with it, or remove them if it is gone.

    `cut` spares splitting and embedding, as long as the memory still has that content.

    Raises:
        StoreUnavailable: the memory kept changing; the chore stays for the sweeper.
        Tampered: it is not to be believed. KeyMissing: it is signed, and this server has no key.
    """
    keys = Keys(namespace)
    memory_id, _, most = chore.rpartition(":")
    for _ in range(_ATTEMPTS):
        record = await _load_whole(service, keys, memory_id)
        if record and (cut is None or cut.content != record.content):
            cut = Cut(record.content, await split_content(record.content))
        written = record is None or cut is None or await _write(service, keys, record, cut)
        leftover = range(len(cut.pieces) if record and cut else 1, int(most))
        if written and await _finish(service.backend, keys, Ref(memory_id), record, chore, leftover):
            return
    raise StoreUnavailable("the memory keeps being changed by others", hint="try again", retry_after=0.5)


async def settle_or_tell(service: MemoryServices, namespace: str, chore: str, cut: Cut | None = None) -> str | None:
    """Settle after a change that is already acknowledged: a failure is for the sweeper to mend and for us to tell."""
    try:
        await settle(service, namespace, chore, cut)
    except MemoryServiceError as error:
        return f"the further pieces of a long memory cannot be searched yet: {error.message}"
    return None


async def _load_whole(service: MemoryServices, keys: Keys, memory_id: str) -> Record | None:
    async def fetch(client: Client) -> list[Record | loader.UnverifiedRecord]:
        return await loader.load_all(client, keys, [Ref(memory_id)], service.backend.integrity, whole=True)

    found = next(iter(await service.backend.read(fetch)), None)
    if isinstance(found, loader.UnverifiedRecord):
        raise tampered(memory_id, found.failure)
    return await service.vault.open(keys.namespace, found) if found else None


async def _write(service: MemoryServices, keys: Keys, record: Record, cut: Cut) -> bool:
    """Write every further piece; False when the memory changed meanwhile."""
    shared, texts, vectors = filter_fields(record), cut.pieces, cut.vectors
    form = await form_of(service, keys.namespace, record, cut.model or await service.models.current(keys.namespace))
    if form.version and form.content_hash(record.content) != record.content_hash:
        service.vault.forget(keys.namespace, record.owner)
        return (
            False  # another key was put in force: it was read too early here, or the memory is about to be sealed anew
        )
    for start in range(1, len(texts), _SLICE):
        numbers = range(start, min(start + _SLICE, len(texts)))
        answer = await service.backend.write(
            "rm1_pieces",
            [
                keys.memory(record.id),
                keys.job_streams,
                keys.events,
                *(keys.chunk(record.id, number) for number in numbers),
            ],
            repeatable=True,
            id=record.id,
            hash=record.content_hash,
            rev=record.rev,
            signed=service.backend.integrity.signs,
            fields=flat(shared),
            remove=[name for name in _OPTIONAL if name not in shared],
            items=[
                _item(
                    service.backend.integrity,
                    keys,
                    form,
                    record,
                    number,
                    texts[number],
                    None if vectors is None else vectors[number],
                )
                for number in numbers
            ],
        )
        if answer["status"] == "key_missing":
            raise signed_elsewhere()
        if answer["status"] != "settled":
            return False
    if vectors is None and len(texts) > 1:
        service.ring(keys.namespace)
    return True


def _item(
    integrity: Integrity, keys: Keys, form: Form, record: Record, number: int, text: str, vector: Matrix | None
) -> dict[str, Any]:
    code: dict[str, str] = {}
    if not record.is_sensitive:  # a sealed piece proves itself
        where = (keys.namespace, record.id, number, record.content_hash)
        code = integrity.sign_piece(*where, text.encode())
    return {
        "piece": number,
        "code": flat(code),
        "fields": flat(form.piece(record, number, text)),
        "vector": form.vector(record, number, vector),
        "job": form.job(record, number, text),
    }


async def _finish(backend: Backend, keys: Keys, ref: Ref, record: Record | None, chore: str, leftover: range) -> bool:
    """Remove pieces that belong to nothing any more, then the chore; False when the memory changed meanwhile."""
    slices = [leftover[start : start + _SLICE] for start in range(0, len(leftover), _SLICE)] or [range(0)]
    for numbers in slices:
        answer = await backend.write(
            "rm1_settled",
            [
                keys.chores,
                keys.memory(ref.memory_id),
                *(keys.chunk(ref.memory_id, number) for number in numbers),
            ],
            repeatable=True,
            hash=record.content_hash if record else None,
            rev=record.rev if record else None,
            chore=chore,
            done=numbers is slices[-1],
        )
        if answer["status"] == "stale":
            return False
    return True
