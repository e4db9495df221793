"""Imports a file. Reads it twice: first to find all errors before anything is written, then to import it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from memory_core.errors import InvalidArgument, MemoryServiceError
from memory_core.records.audit_entry import AuditEntry, system_entry
from memory_core.records.model import Model
from memory_core.records.names import canonical_name, check_agent_name
from memory_core.records.scope import Principal
from memory_server.contract.untrusted_text import counted
from memory_server.engine.principals import resolve, resolve_writer
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.operations.quarantine import CONSOLE
from memory_server.service import Service
from memory_server.transfer import export_lines as lines
from memory_server.transfer.detection import OWN, detect
from memory_server.transfer.export_lines import AgentLine, End, GrantLine, Header, MemoryLine, QuarantineLine
from memory_server.transfer.exporter import Progress
from memory_server.transfer.foreign import Bad, Foreign, Format, PassedOver
from memory_server.transfer.incoming_memory import Arrival, ForeignDefaults, from_foreign, from_line
from memory_server.transfer.restore import OP, Restorer
from memory_server.transfer.signature import FileSignature
from memory_server.transfer.source import Source
from memory_server.transfer.writer import FAILURES, ImportWriter

_MAX_NAMED = 20
_PROGRESS_EVERY = 100
_UNSIGNED = (
    "no key of this server signed this file: it brings agents that are new here and their memories, but no grants; "
    "--trust restores all that it says"
)
Item = Arrival | AgentLine | QuarantineLine | GrantLine | Bad | PassedOver


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The options of an import. `agent` becomes the owner of foreign memories.

    `trust` restores owners and grants of an export that no key of this server signed.
    """

    format: str | None = None
    agent: str | None = None
    defaults: ForeignDefaults = field(default_factory=ForeignDefaults)
    skip_bad: bool = False
    trust: bool = False
    dry_run: bool = False


@dataclass(slots=True)
class Imported:
    """The result of an import: `memories` and `others` count by outcome, `bad` has the first unreadable records.

    `passed_over` counts by kind what makes no memory; `lost` is how many of these have content that is current.
    """

    format: str
    dry_run: bool
    read: int = 0
    memories: Counter[str] = field(default_factory=Counter[str])
    others: Counter[str] = field(default_factory=Counter[str])
    passed_over: Counter[str] = field(default_factory=Counter[str])
    lost: int = 0
    bad_records: int = 0
    bad: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    @property
    def whole(self) -> bool:
        """Whether the namespace now has all of the file, except what had expired."""
        refused = sum(self.memories[outcome] for outcome in FAILURES)
        others = (name.partition(" ")[2] for name, number in self.others.items() if number)
        return not (refused or self.lost or self.bad_records or set(others) - {"imported", "kept", "expired"})


async def import_path(
    service: Service, namespace: str, path: Path, options: ImportOptions, on_progress: Progress | None = None
) -> Imported:
    """Import a file or folder into a namespace. Existing memories stay unchanged.

    Raises:
        InvalidArgument: it cannot be read, or a record cannot be read and `skip_bad` is not set; nothing is written.
        QuotaExceeded: the agent's quota is used up. KeyMissing: records are signed here, and there is no key.
    """
    source, foreign = detect(path, options.format)
    await service.backend.client()
    model = await service.models.current(namespace)
    if foreign:
        reader = await _ForeignReader.open(service, namespace, source, foreign, options)
        report = Imported(foreign.name, options.dry_run)
    else:
        reader = _OwnReader(service, source, model, options)
        report = Imported(OWN, options.dry_run, notes=reader.notes())
    _check(reader.items(), report)
    if report.bad_records and not options.skip_bad:
        raise InvalidArgument(
            f"{report.bad_records} of {counted(report.read, 'record')} cannot be read, so nothing was imported: "
            + "; ".join(report.bad[:3]),
            hint="fix them, or leave them out with --skip-bad",
        )
    if not options.dry_run:
        await service.namespaces.get(namespace)
        if isinstance(reader, _ForeignReader):
            await reader.create_owner()
    unsigned = reader.unsigned
    if unsigned is not None and not options.trust:
        report.notes.append(_UNSIGNED)
    await _write(service, namespace, reader, report, model, None if options.trust else unsigned, on_progress)
    if reader.unsigned != unsigned:
        raise InvalidArgument(f"{path} changed while it was imported", hint="import it again")
    return report


async def _write(
    service: Service,
    namespace: str,
    reader: _ForeignReader | _OwnReader,
    report: Imported,
    model: Model,
    file: str | None,
    on_progress: Progress | None,
) -> None:
    """Import what the reader yields. `file` identifies a file without authority over what exists here."""
    restorer = Restorer(service.backend, namespace, file, report.others)
    writer = ImportWriter(
        service, namespace, reader.audit, reader.principal, model=model, file=file, dry_run=report.dry_run
    )
    writer.outcomes, secrets = report.memories, Counter[str]()
    items = (item for item in reader.items() if not isinstance(item, PassedOver))
    for number, item in enumerate(items, 1):
        if isinstance(item, Arrival):
            if item.secrets:
                secrets[item.secrets.line()] += 1
            await writer.add(restorer.attribute(item))
        elif not isinstance(item, Bad) and not report.dry_run:
            await writer.flush()
            await restorer.restore(item)
        if on_progress and (number % _PROGRESS_EVERY == 0 or number == report.read):
            on_progress(number, report.read)
    await writer.flush()
    report.notes += [
        *sorted(writer.warnings),
        *(f"{counted(number, 'memory')}. {line}" for line, number in secrets.items()),
    ]


def _check(items: Iterator[Item], report: Imported) -> None:
    for item in items:
        if isinstance(item, PassedOver):
            report.passed_over[item.kind] += 1
            report.lost += item.is_lost
            continue
        report.read += 1
        if isinstance(item, Bad):
            report.bad_records += 1
            if len(report.bad) < _MAX_NAMED:
                report.bad.append(f"{item.where}: {item.reason}")


@dataclass(slots=True)
class _ForeignReader:
    """Reads another product's file. Its memories become those of one agent."""

    unsigned = None
    service: Service
    source: Source
    format: Format
    defaults: ForeignDefaults
    caller: Caller
    principal: Principal

    @classmethod
    async def open(
        cls, service: Service, namespace: str, source: Source, known: Format, options: ImportOptions
    ) -> _ForeignReader:
        agent = options.agent or service.settings.agent
        if agent is None:
            raise InvalidArgument("these memories need an owner", hint="pass --agent NAME")
        caller = Caller(
            namespace, check_agent_name(canonical_name(agent, "agent")), by=CONSOLE, origin=f"{CONSOLE} {os.getpid()}"
        )
        if options.defaults.sensitive or service.settings.secrets == "seal":
            await service.vault.check()
        principal = await resolve(service.backend, RequestContext(caller))
        return cls(service, source, known, options.defaults, caller, principal)

    async def create_owner(self) -> None:
        """Give the agent an owner id if it has none."""
        self.principal = await resolve_writer(self.service.backend, RequestContext(self.caller))

    def audit(self, ids: Sequence[str]) -> AuditEntry:
        return self.caller.audit(OP, ids)

    def items(self) -> Iterator[Item]:
        for found in self.format.read(self.source):
            if not isinstance(found, Foreign):
                yield found
                continue
            try:
                yield from_foreign(self.service.settings, self.principal, self.format.name, found, self.defaults)
            except MemoryServiceError as error:
                yield Bad(found.where, error.message)


@dataclass(slots=True)
class _Pass:
    """What one pass over an export has read: `owners` maps owner ids to the names that the file gives them."""

    header: Header | None = None
    counts: Counter[str] = field(default_factory=Counter[str])
    owners: dict[str, str] = field(default_factory=dict[str, str])
    signature: FileSignature = field(default_factory=FileSignature)
    is_ours: bool = False


class _OwnReader:
    """Reads an export of this product.

    After a pass, `unsigned` identifies the file unless a key of this server signed it.
    """

    principal = None
    unsigned: str | None = None

    def __init__(self, service: Service, source: Source, model: Model, options: ImportOptions) -> None:
        if options.agent is not None:
            raise InvalidArgument(
                "--agent is only for foreign formats", hint="an export names the owner of each memory"
            )
        self._service, self._source, self._model = service, source, model
        self.audit = partial(system_entry, CONSOLE, OP)

    def items(self) -> Iterator[Item]:
        read, is_cut = _Pass(), False
        for number, raw in self._source.lines():
            where = f"line {number}"
            try:
                yield from self._items_of(read, where, raw)
            except ValueError as error:
                is_cut = not raw.endswith(b"\n")
                yield Bad(where, "the file ends in the middle of this line" if is_cut else str(error))
            except MemoryServiceError as error:
                yield Bad(where, error.message)
        self.unsigned = None if read.is_ours else read.signature.digest
        if not read.counts["end"] and not is_cut:
            yield Bad("the end", "the file is incomplete: its last line is missing")

    def _items_of(self, read: _Pass, where: str, raw: bytes) -> Iterator[Item]:
        line = lines.parse(raw)
        is_over = bool(read.counts["end"])
        read.counts[line.kind] += 1
        if not isinstance(line, End):
            read.signature.add(raw)
        if is_over:
            read.is_ours = False
            yield Bad(where, "it comes after the last line of the export")
        elif isinstance(line, Header):
            read.header = line
        elif read.header is None:
            yield Bad(where, "the file does not begin with its header")
        elif isinstance(line, End):
            yield from _check_counts(where, line, read.counts)
            read.is_ours = read.signature.is_signed_by(self._service.backend.keyring, line)
        elif isinstance(line, MemoryLine):
            yield from_line(self._service, read.header, self._model, line, read.owners.get(line.owner, ""))
        else:
            if isinstance(line, AgentLine):
                read.owners |= dict.fromkeys((*line.owners, *line.kept), line.name)
            yield line

    def notes(self) -> list[str]:
        """Return what a person should know before the import."""
        _, first = next(self._source.lines(), (0, b""))
        try:
            header = lines.parse(first)
        except ValueError:
            return []
        if not isinstance(header, Header) or not header.vectors or header.model == self._model.name:
            return []
        return [f"its vectors are of {header.model}; all vectors are computed again with {self._model.name}"]


def _check_counts(where: str, line: End, counts: Counter[str]) -> Iterator[Bad]:
    expected = {"agent": line.agents, "quarantine": line.quarantine, "memory": line.memories, "grant": line.grants}
    for kind, number in expected.items():
        if counts[kind] != number:
            yield Bad(where, f"expected {counted(number, 'line')} of kind {kind}, found {counts[kind]}")
