"""Writes a namespace to a file, in one order, so that the same memories always give the same file."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_core.crypto.keyring import framed
from memory_core.errors import Conflict, InvalidArgument, Tampered
from memory_core.records import redis_time
from memory_core.records.audit_entry import system_entry
from memory_core.records.codec import unpack
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.names import SEPARATOR
from memory_core.records.times import NEVER
from memory_core.redis_client import Client
from memory_server.engine.backend import Backend
from memory_server.index import loader
from memory_server.index.loader import Ref, UnverifiedRecord
from memory_server.operations.quarantine import CONSOLE, quarantined
from memory_server.service import Service
from memory_server.transfer import files, lines
from memory_server.transfer.lines import (
    AgentLine,
    AnyLine,
    End,
    GrantLine,
    Header,
    MemoryLine,
    QuarantineLine,
    SealedPart,
)
from memory_server.transfer.sealed import FileSeal, Inside

_SLICE = 100
Progress = Callable[[int, int], None]
"""Told how many memories are done, of how many."""


@dataclass(frozen=True, slots=True)
class What:
    """What goes into the file."""

    vectors: bool = True
    sensitive: bool = True


@dataclass(slots=True)
class Exported:
    """What came of an export. `left_out` counts memories by why they are not in the file."""

    file: str
    resumed_from: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    left_out: Counter[str] = field(default_factory=Counter[str])
    ids: set[str] = field(default_factory=set[str])
    """Of the memories that an earlier try wrote."""

    @property
    def whole(self) -> bool:
        """Whether nothing failed; what was left out on purpose is no failure."""
        return not self.left_out["tampered"]


def part_of(file: Path, namespace: str) -> Path:
    """Name the file that an export is written to until it is whole."""
    return file.with_name(f"{file.name}.{namespace}.part")


async def export(
    service: Service, namespace: str, file: Path, what: What, *, force: bool = False, tell: Progress | None = None
) -> Exported:
    """Write all memories of a namespace, with their owners and grants; going on where an earlier try was stopped.

    It is no snapshot: what is changed meanwhile is in it as it is when its turn comes.

    Raises:
        Conflict: the file is there already, or the unfinished one was begun with other options.
        KeyMissing: there are sensitive memories, and no master key. InvalidArgument: the file cannot be written.
    """
    _check_free(file, force)
    if not await service.namespaces.knows(namespace):
        raise InvalidArgument(f"nothing was ever stored in namespace {namespace}", hint="check --namespace")
    part, model = part_of(file, namespace), await service.models.current(namespace)
    exported = Exported(str(file))
    try:
        with files.Writer(part, packed=file.suffix == files.PACKED) as writer:
            after = _resume(writer, header_of(model, what), exported)
            await _write(service, namespace, what, model, writer, after, exported, tell)
            writer.finish()
        os.replace(part, file)
    except OSError as error:
        raise InvalidArgument(f"cannot write {part}: {error.strerror}", hint="choose another file") from None
    ids = exported.counts["memory"]
    service.auditor.recorder.add(namespace, {**system_entry(CONSOLE, "export"), "count": ids})
    await service.auditor.flush()
    return exported


def _check_free(file: Path, force: bool) -> None:
    if file.exists() and not force:
        raise Conflict(f"{file} is there already", hint="choose another name, or give --force")


def header_of(model: Model, what: What) -> Header:
    """Make the first line."""
    return Header(
        model=model.name,
        dimension=model.dimension,
        vectors=what.vectors,
        sensitive=what.sensitive,
    )


def _resume(writer: files.Writer, header: Header, exported: Exported) -> tuple[int, str]:
    """Find out how far an earlier try came: the place of its last line.

    Raises:
        Conflict: it was begun with other options.
    """
    after, last = (-1, ""), b""
    for line in writer.kept():
        if not last and line != header.dump():
            raise Conflict("an unfinished export with other options lies there", hint="remove the .part file")
        last = line
        said = json.loads(line)
        exported.counts[said["kind"]] += 1
        if said["kind"] == "memory":
            exported.ids.add(said["id"])
    if last:
        after = lines.position(lines.parse(last))
    exported.resumed_from = exported.counts["memory"]
    return after


async def _write(
    service: Service,
    namespace: str,
    what: What,
    model: Model,
    writer: files.Writer,
    after: tuple[int, str],
    exported: Exported,
    tell: Progress | None,
) -> None:
    agents = await _agents(service.backend, namespace)
    known = {owner for agent in agents for owner in agent.owners}
    quarantine = [
        QuarantineLine(name=one.agent, since=lines.to_text(one.since) or "")
        for one in await quarantined(service.backend, namespace)
    ]

    def add(found: Sequence[AnyLine]) -> None:
        for line in found:
            if lines.position(line) > after:
                writer.write(line.dump())
                exported.counts[line.kind] += 1

    add([header_of(model, what), *agents, *quarantine])
    async for some, done, total in _memories(service, namespace, what, model, after, known, exported):
        add(some)
        if tell:
            tell(done, total)
    add(sorted(await _grants(service.backend, namespace), key=lines.position))
    count = exported.counts
    add([End(agents=count["agent"], quarantine=count["quarantine"], memories=count["memory"], grants=count["grant"])])


async def _names(backend: Backend, pattern: str) -> list[str]:
    """Give the ends of all keys that begin so, in order."""
    found, cursor = set[str](), 0
    while True:
        cursor, raws = await backend.read(
            lambda client, cursor=cursor: client.scan(cursor, match=f"{pattern}*", count=1000)
        )
        found.update(raw.decode()[len(pattern) :] for raw in raws)
        if not cursor:
            return sorted(found)


async def _agents(backend: Backend, namespace: str) -> list[AgentLine]:
    keys = Keys(namespace)
    names = await _names(backend, keys.agent(""))

    async def fetch(client: Client) -> list[list[bytes | None]]:
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.hmget(keys.agent(name), ["owner", "owners"])
        return await pipe.execute()

    rows = await backend.read(fetch) if names else []
    found = [(name, *(part.decode() if part else None for part in row)) for name, row in zip(names, rows, strict=True)]
    return [
        AgentLine(name=name, owner=owner, owners=owners.split(SEPARATOR)) for name, owner, owners in found if owners
    ]


async def _memories(
    service: Service,
    namespace: str,
    what: What,
    model: Model,
    after: tuple[int, str],
    owners: set[str],
    exported: Exported,
) -> AsyncGenerator[tuple[list[MemoryLine], int, int]]:
    """Give the lines of memories by id, slice by slice, and how many are done, of how many.

    Of those whose place an earlier try has passed, only why they are not in the file is counted.
    """
    keys, section = Keys(namespace), lines.ORDER.index("memory")
    names = [name for name in await _names(service.backend, keys.memory("")) if name not in exported.ids]
    for start in range(0, len(names), _SLICE):
        refs = [Ref(name) for name in names[start : start + _SLICE]]
        some: list[MemoryLine] = []
        for one in await _load(service.backend, keys, refs, model if what.vectors else None, whole=True):
            passed = "stored meanwhile" if (section, one.id) <= after else None
            reason = _why_not(one, what, owners) or passed
            if reason or isinstance(one, UnverifiedRecord):
                exported.left_out[reason or ""] += 1
            else:
                some += await _lines(service, keys, one, what, model, exported)
        yield some, len(exported.ids) + start + len(refs), len(exported.ids) + len(names)


async def _lines(
    service: Service, keys: Keys, one: Record, what: What, model: Model, exported: Exported
) -> list[MemoryLine]:
    """Give the line of a memory, or none where it is sensitive and was altered or its key destroyed.

    Raises:
        KeyMissing: it is sensitive, and there is no master key.
    """
    try:
        return [await _line(service, keys, one, what, model)]
    except Tampered:
        exported.left_out["tampered"] += 1
        return []


def _why_not(one: Record | UnverifiedRecord, what: What, owners: set[str]) -> str | None:
    """Say why a record is not written: one that was altered would be signed anew where it is imported."""
    if isinstance(one, UnverifiedRecord):
        return "tampered"
    if one.owner not in owners:
        return "deleted agent"
    if not one.is_live(redis_time.now()):
        return "expired"
    return "sensitive" if one.is_sensitive and not what.sensitive else None


async def _load(
    backend: Backend, keys: Keys, refs: Sequence[Ref], model: Model | None, *, whole: bool = False
) -> list[Record | UnverifiedRecord]:
    async def fetch(client: Client) -> list[Record | UnverifiedRecord]:
        return await loader.load_all(client, keys, refs, backend.integrity, model=model, whole=whole)

    return await backend.read(fetch)


async def _line(service: Service, keys: Keys, closed: Record, what: What, model: Model) -> MemoryLine:
    """Make the line of a memory.

    Raises:
        KeyMissing, Tampered: it is sensitive, and cannot be opened.
    """
    record = await service.vault.open(keys.namespace, closed)
    vectors, cut = await _vectors(service, keys, record, model) if what.vectors else (None, None)
    line = MemoryLine(
        id=record.id,
        owner=record.owner,
        writer=record.writer,
        type=record.type,
        priority=record.priority,
        visibility=record.visibility,
        tags=list(record.tags) or None,
        context=record.context,
        source=record.source,
        seq=record.seq,
        rev=record.rev,
        occurred_at=None if record.occurred_at is None else lines.to_text(record.occurred_at),
        created_at=lines.to_text(record.created_at) or "",
        updated_at=lines.to_text(record.updated_at) or "",
        expires_at=None if record.expires_at == NEVER else lines.to_text(record.expires_at),
    )
    if record.is_sensitive:
        return line.model_copy(update={"sealed": _sealed(FileSeal(service.backend.keyring), record, vectors, cut)})
    return line.model_copy(
        update={
            "content": record.content,
            "metadata": json.loads(record.metadata) if record.metadata else None,
            "cut": cut,
            "vectors": [base64.b64encode(vector).decode() for vector in vectors] if vectors else None,
        }
    )


def place_of(memory_id: str, owner: str, rev: int) -> tuple[str, ...]:
    """What the encrypted parts of a memory in a file are bound to."""
    return memory_id, owner, str(rev)


def cut_of(pieces: Sequence[str]) -> str:
    """Tell one way of cutting a content from another, by its further pieces."""
    return digest(framed(piece.encode() for piece in pieces).decode(errors="replace"))


def _sealed(seal: FileSeal, record: Record, vectors: Sequence[bytes] | None, cut: str | None) -> SealedPart:
    where = place_of(record.id, record.owner, record.rev)
    return SealedPart(
        key=seal.key_id,
        text=seal.seal(where, Inside(record.content, record.metadata, cut)),
        vectors=[seal.seal_vector(where, piece, vector) for piece, vector in enumerate(vectors)] if vectors else None,
    )


async def _vectors(service: Service, keys: Keys, record: Record, model: Model) -> tuple[list[bytes] | None, str | None]:
    """Give the vectors of all pieces of a memory, and how it was cut; nothing where one of them is missing."""
    if record.vector is None:
        return None, None
    pieces: list[Record] = []
    for start in range(1, record.chunks, _SLICE):
        refs = [Ref(record.id, number) for number in range(start, min(start + _SLICE, record.chunks))]
        found = [one for one in await _load(service.backend, keys, refs, model) if isinstance(one, Record)]
        pieces += (await service.vault.open_all(keys.namespace, found)).records
    vectors = [record.vector, *(piece.vector for piece in pieces if piece.vector)]
    if len(vectors) != record.chunks:
        return None, None
    return vectors, cut_of([piece.content for piece in pieces]) if pieces else None


async def _grants(backend: Backend, namespace: str) -> list[GrantLine]:
    """Give the grants in force."""
    keys, found = Keys(namespace), list[GrantLine]()
    for name in await _names(backend, keys.granted("")):

        async def fetch(client: Client, name: str = name) -> list[Any]:
            pipe = client.pipeline(transaction=False)
            pipe.hgetall(keys.granted(name))
            pipe.hget(keys.agent(name), "owner")
            return await pipe.execute()

        entries, owner = await backend.read(fetch)
        for grant_id, packed in entries.items():
            entry = unpack(packed)
            record = await backend.read(lambda client, grant_id=grant_id: client.hgetall(keys.grant(grant_id.decode())))
            if owner and entry["owner"] == owner.decode() and record.get(b"state") == b"active":
                line = _grant_line(grant_id.decode(), entry, record)
                found += [line] if line else []
    return found


def _grant_line(grant_id: str, entry: dict[str, Any], record: dict[bytes, bytes]) -> GrantLine | None:
    now = redis_time.now() * 1_000_000
    via = [
        lines.Via(parent=parent, tokens=sorted(part["tokens"]), since=_moment(part["at"]), until=_end(part["ends"]))
        for parent, part in sorted(dict(entry["via"]).items())
        if part["ends"] > now
    ]
    own = sorted(entry["own"]) if entry["ends"] > now else []
    if not own and not via:
        return None
    return GrantLine(
        id=grant_id,
        grantor=entry["by"],
        grantor_owner=entry["by_owner"],
        grantee=record[b"to"].decode(),
        grantee_owner=entry["owner"],
        permission=entry["permission"],
        selects=record[b"kind"].decode(),  # pyright: ignore[reportArgumentType]
        values=[str(value) for value in unpack(record[b"values"])],
        selector=entry["selector"],
        note=record[b"note"].decode() or None,
        at=lines.to_text(float(record[b"at"])) or "",
        since=_moment(entry["at"]),
        until=_end(entry["ends"]),
        tokens=own,
        via=via or None,
    )


def _moment(microseconds: float) -> str:
    return lines.to_text(microseconds / 1_000_000) or ""


def _end(microseconds: float) -> str | None:
    return lines.to_text(microseconds / 1_000_000)
