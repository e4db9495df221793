"""Exports a namespace to a file in a fixed order: the same memories always give the same file."""

from __future__ import annotations

import base64
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_core.crypto.keyring import framed
from memory_core.crypto.secret_files import publish
from memory_core.errors import Conflict, InvalidArgument, Tampered
from memory_core.records import grant_proof, owners, redis_time
from memory_core.records.audit_entry import system_entry
from memory_core.records.bounded_files import PACKED
from memory_core.records.codec import unpack
from memory_core.records.damage import UNREADABLE
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.redis_client import Client
from memory_server.index import loader
from memory_server.index.loader import Ref, UnverifiedRecord
from memory_server.operations.quarantine import CONSOLE, quarantined
from memory_server.service import Service
from memory_server.transfer import export_lines as lines
from memory_server.transfer import files
from memory_server.transfer.export_lines import AgentLine, AnyLine, End, GrantLine, Header, MemoryLine, QuarantineLine
from memory_server.transfer.sealed import FileSeal, Inside
from memory_server.transfer.signature import FileSignature

log = logging.getLogger(__name__)
_SLICE = 100
Progress = Callable[[int, int], None]
"""Receives how many records are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to include in the file."""

    vectors: bool = True
    sensitive: bool = True


@dataclass(slots=True)
class Exported:
    """The result of an export. `counts` has written lines by kind, `left_out` omitted memories by reason."""

    file: str
    resumed_from: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    left_out: Counter[str] = field(default_factory=Counter[str])

    @property
    def whole(self) -> bool:
        """Whether no memory failed; memories left out on purpose are no failure."""
        return not self.left_out["tampered"]


async def export(
    service: Service,
    namespace: str,
    file: Path,
    options: ExportOptions,
    *,
    force: bool = False,
    on_progress: Progress | None = None,
) -> Exported:
    """Write all memories of a namespace, with their owners and grants. Resumes an interrupted export.

    The file is not a snapshot: it has each memory as it is when it is written.

    Raises:
        Conflict: the file exists, or an interrupted export used other options.
        KeyMissing: there are sensitive memories but no master key. InvalidArgument: the file cannot be written.
    """
    if not force:
        _check_free(file)
    if not await service.namespaces.knows(namespace):
        raise InvalidArgument(f"nothing was ever stored in namespace {namespace}", hint="check --namespace")
    part = file.with_name(f"{file.name}.{namespace}.part")
    exported, model = Exported(str(file)), await service.models.current(namespace)
    try:
        with files.Writer(part, packed=file.suffix == PACKED) as writer:
            exporter = _Exporter(service, namespace, options, model, writer, exported)
            exporter.resume()
            await exporter.write(on_progress)
            writer.finish()
        publish(part, file)
    except OSError as error:
        raise InvalidArgument(f"cannot write {part}: {error.strerror}", hint="choose another file") from None
    entry = {**system_entry(CONSOLE, "export"), "count": exported.counts["memory"]}
    service.auditor.recorder.add(namespace, entry)
    await service.auditor.flush()
    return exported


def _check_free(file: Path) -> None:
    if file.exists():
        raise Conflict(f"{file} already exists", hint="choose another name, or pass --force")


def binding(memory_id: str, owner: str, rev: int) -> tuple[str, ...]:
    """Return what binds the encrypted parts of a memory in a file to that memory."""
    return memory_id, owner, str(rev)


def chunking_digest(further_chunks: Sequence[str]) -> str:
    """Identify how a content was split, by its chunks after the first."""
    return digest(framed(chunk.encode() for chunk in further_chunks).decode(errors="replace"))


class _Exporter:
    def __init__(
        self,
        service: Service,
        namespace: str,
        options: ExportOptions,
        model: Model,
        writer: files.Writer,
        exported: Exported,
    ) -> None:
        self._service, self._backend, self._keys = service, service.backend, Keys(namespace)
        self._options, self._model, self._writer, self._exported = options, model, writer, exported
        self._header = Header(
            model=model.name, dimension=model.dimension, vectors=options.vectors, sensitive=options.sensitive
        )
        self._already_written: set[str] = set()
        self._signature = FileSignature()
        self._after = (-1, "")
        """The position of the last line that an interrupted export wrote."""

    def resume(self) -> None:
        """Find out what an interrupted export wrote.

        Raises:
            Conflict: it used other options.
        """
        last = b""
        for line in self._writer.complete_lines():
            if not last and line != self._header.dump():
                raise Conflict("an unfinished export used other options", hint="remove the .part file")
            self._signature.add(line)
            last = line
            self._count(line)
        if last:
            try:
                self._after = lines.position(lines.parse(last))
            except ValueError:
                raise Conflict("the unfinished export is damaged", hint="remove the .part file") from None
        self._exported.resumed_from = len(self._already_written)

    def _count(self, line: bytes) -> None:
        try:
            content = json.loads(line)
            self._exported.counts[content["kind"]] += 1
            if content["kind"] == "memory":
                self._already_written.add(content["id"])
        except (ValueError, TypeError, LookupError, RecursionError):
            raise Conflict("the unfinished export is damaged", hint="remove the .part file") from None

    async def write(self, on_progress: Progress | None) -> None:
        """Write the lines that are missing."""
        agents = await self._agents()
        quarantine = await quarantined(self._backend, self._keys.namespace)
        self._add([self._header, *agents])
        self._add(QuarantineLine(name=one.agent, since=lines.to_text(one.since)) for one in quarantine)
        await self._write_memories({owner for agent in agents for owner in (*agent.owners, *agent.kept)}, on_progress)
        self._add(sorted(await self._grants(), key=lines.position))
        count = self._exported.counts
        agent_lines, quarantine_lines = count["agent"], count["quarantine"]
        end = End(agents=agent_lines, quarantine=quarantine_lines, memories=count["memory"], grants=count["grant"])
        self._add([self._signature.sign(self._backend.keyring, end)])

    def _add(self, found: Iterable[AnyLine]) -> None:
        for line in found:
            if lines.position(line) > self._after:
                raw = line.dump()
                self._signature.add(raw)
                self._writer.write(raw)
                self._exported.counts[line.kind] += 1

    async def _names(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, without it, sorted."""
        found, cursor = set[str](), 0
        while True:
            cursor, keys = await self._backend.read(
                lambda client, cursor=cursor: client.scan(cursor, match=f"{prefix}*", count=1000)
            )
            found.update(key.decode()[len(prefix) :] for key in keys)
            if not cursor:
                return sorted(found)

    async def _agents(self) -> list[AgentLine]:
        names = await self._names(self._keys.agent(""))

        async def fetch(client: Client) -> list[list[bytes | None]]:
            pipe = client.pipeline(transaction=False)
            for name in names:
                pipe.hmget(self._keys.agent(name), owners.FIELDS)
            return await pipe.execute()

        rows = await self._backend.read(fetch) if names else []
        where = (self._backend.integrity, self._keys.namespace)
        found = [(name, owners.read(*where, name, row)) for name, row in zip(names, rows, strict=True)]
        return [
            AgentLine(name=name, owner=one.current, owners=list(one.all), kept=list(one.kept))
            for name, one in found
            if one.all or one.kept
        ]

    async def _write_memories(self, owners: set[str], on_progress: Progress | None) -> None:
        """Write memories by id.

        An earlier export has passed some positions: memories stored there since then are only counted as left out.
        """
        section, done = lines.ORDER.index("memory"), len(self._already_written)
        names = [name for name in await self._names(self._keys.memory("")) if name not in self._already_written]
        for start in range(0, len(names), _SLICE):
            refs = [Ref(name) for name in names[start : start + _SLICE]]
            for record in await self._load(refs, whole=True):
                reason = self._reason_to_omit(record, owners)
                if reason is None and (section, record.id) <= self._after:
                    reason = "stored meanwhile"
                if reason is None and isinstance(record, Record):
                    reason = await self._write_memory(record)
                if reason:
                    self._exported.left_out[reason] += 1
            if on_progress:
                on_progress(done + start + len(refs), done + len(names))

    async def _load(self, refs: Sequence[Ref], *, whole: bool = False) -> list[Record | UnverifiedRecord]:
        model = self._model if self._options.vectors else None

        async def fetch(client: Client) -> list[Record | UnverifiedRecord]:
            return await loader.load_all(client, self._keys, refs, self._backend.integrity, model=model, whole=whole)

        return await self._backend.read(fetch)

    def _reason_to_omit(self, record: Record | UnverifiedRecord, owners: set[str]) -> str | None:
        if isinstance(record, UnverifiedRecord):
            return "tampered"  # an import would sign it
        if record.owner not in owners:
            return "deleted agent"
        if not record.is_live(redis_time.now()):
            return "expired"
        return "sensitive" if record.is_sensitive and not self._options.sensitive else None

    async def _write_memory(self, closed: Record) -> str | None:
        """Write a memory. Return why not if it is sensitive and was altered or its key was destroyed."""
        try:
            record = await self._service.vault.open(self._keys.namespace, closed)
            vectors, cut = await self._vectors(record)
        except Tampered:
            return "tampered"
        if record.is_sensitive:
            content: dict[str, Any] = {"sealed": self._sealed(record, vectors, cut)}
        else:
            content = {
                "content": record.content,
                "metadata": json.loads(record.metadata) if record.metadata else None,
                "cut": cut,
                "vectors": [base64.b64encode(vector).decode() for vector in vectors] or None,
            }
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
            created_at=lines.to_text(record.created_at),
            updated_at=lines.to_text(record.updated_at),
            expires_at=lines.expiry_to_text(record.expires_at),
        )
        self._add([line.model_copy(update=content)])
        return None

    def _sealed(self, record: Record, vectors: Sequence[bytes], cut: str | None) -> lines.SealedPart:
        seal, bound_to = FileSeal(self._backend.keyring), binding(record.id, record.owner, record.rev)
        return lines.SealedPart(
            key=self._backend.keyring.master.id,
            text=seal.seal(bound_to, Inside(record.content, record.metadata, cut)),
            vectors=[seal.seal_vector(bound_to, number, vector) for number, vector in enumerate(vectors)] or None,
        )

    async def _vectors(self, record: Record) -> tuple[list[bytes], str | None]:
        """Return the vectors of all chunks and how the content was split; nothing if a vector is missing."""
        if record.vector is None or not self._options.vectors:
            return [], None
        chunks: list[Record] = []
        for start in range(1, record.chunks, _SLICE):
            refs = [Ref(record.id, number) for number in range(start, min(start + _SLICE, record.chunks))]
            found = [one for one in await self._load(refs) if isinstance(one, Record)]
            chunks += (await self._service.vault.open_all(self._keys.namespace, found)).records
        vectors = [record.vector, *(chunk.vector for chunk in chunks if chunk.vector)]
        if len(vectors) != record.chunks:
            return [], None
        return vectors, chunking_digest([chunk.content for chunk in chunks]) if chunks else None

    async def _grants(self) -> list[GrantLine]:
        """Return the grants in force."""
        keys, found = self._keys, list[GrantLine]()
        for name in await self._names(keys.granted("")):

            async def fetch(client: Client, name: str = name) -> list[Any]:
                pipe = client.pipeline(transaction=False)
                pipe.hgetall(keys.granted(name))
                pipe.hget(keys.agent(name), "owner")
                return await pipe.execute()

            entries, owner = await self._backend.read(fetch)
            for grant_id, packed in entries.items():
                try:
                    entry, key = unpack(packed), keys.grant(grant_id.decode())
                    if grant_proof.check(self._backend.integrity, keys.namespace, name, grant_id.decode(), entry):
                        continue
                    record = await self._backend.read(lambda client, key=key: client.hgetall(key))
                    if owner and entry["owner"] == owner.decode() and record.get(b"state") == b"active":
                        line = _grant_line(grant_id.decode(), entry, record)
                        found += [line] if line else []
                except UNREADABLE as error:
                    log.warning("grant %s of %s is left out, because it is damaged: %s", grant_id, name, error)
        return found


def _grant_line(grant_id: str, entry: dict[str, Any], record: dict[bytes, bytes]) -> GrantLine | None:
    """Make the line of a grant from its entry at the grantee, which has times in microseconds, and its record."""
    now = redis_time.now() * 1_000_000
    via = [
        lines.Via(
            parent=parent,
            tokens=sorted(part["tokens"]),
            since=_to_text(part["at"]),
            until=_expiry_to_text(part["ends"]),
        )
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
        at=lines.to_text(float(record[b"at"])),
        since=_to_text(entry["at"]),
        until=_expiry_to_text(entry["ends"]),
        tokens=own,
        via=via or None,
    )


def _to_text(microseconds: float) -> str:
    return lines.to_text(microseconds / 1_000_000)


def _expiry_to_text(microseconds: float) -> str | None:
    return lines.expiry_to_text(microseconds / 1_000_000)
