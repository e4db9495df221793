"""Reads a file twice: once to find what is wrong with it before anything is written, then to bring it in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memory_core.errors import InvalidArgument, MemoryServiceError
from memory_core.records.audit_entry import AuditEntry, system_entry
from memory_core.records.model import Model
from memory_core.records.names import check_name
from memory_core.records.scope import Principal
from memory_server.engine.principals import resolve, resolve_writer
from memory_server.engine.request import Caller, RequestContext
from memory_server.operations.quarantine import CONSOLE
from memory_server.service import Service
from memory_server.transfer import lines
from memory_server.transfer.arrivals import Arrival, Wish, from_foreign, from_line
from memory_server.transfer.detection import OWN, detect
from memory_server.transfer.foreign import Bad, Format, Source
from memory_server.transfer.lines import AgentLine, End, GrantLine, Header, MemoryLine, QuarantineLine
from memory_server.transfer.restore import OP, restore
from memory_server.transfer.writer import FAILURES, Incoming

_NAMED = 20
_TOLD_EVERY = 100
Progress = Callable[[int, int], None]
"""Told how many records were read, of how many."""
Around = AgentLine | QuarantineLine | GrantLine
Item = Arrival | Around | Bad


@dataclass(frozen=True, slots=True)
class How:
    """What the person says who imports. `agent` is whose foreign memories become."""

    format: str | None = None
    agent: str | None = None
    wish: Wish = field(default_factory=Wish)
    skip_bad: bool = False
    dry_run: bool = False


@dataclass(slots=True)
class Imported:
    """What came of an import: `memories` and `others` count by fate, and `bad` names the first that cannot be read."""

    format: str
    dry_run: bool
    read: int = 0
    memories: Counter[str] = field(default_factory=Counter[str])
    others: Counter[str] = field(default_factory=Counter[str])
    bad_records: int = 0
    bad: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    @property
    def whole(self) -> bool:
        """Whether all of the file is in the namespace now, or was left out because it had expired."""
        refused = sum(self.memories[fate] for fate in FAILURES)
        others = (name.partition(" ")[2] for name, number in self.others.items() if number)
        return not (refused or self.bad_records or set(others) - {"imported", "kept", "expired"})


async def import_path(service: Service, namespace: str, path: Path, how: How, tell: Progress | None = None) -> Imported:
    """Bring what a file or folder holds into a namespace. What is there already stays as it is.

    Raises:
        InvalidArgument: it cannot be read, or something in it cannot and `skip_bad` is not set; nothing is written.
        QuotaExceeded: the agent has no room for more. KeyMissing: records are signed here, and there is no key.
    """
    source, foreign = detect(path, how.format)
    await service.backend.client()
    whence = await (
        _Foreign.of(service, namespace, source, foreign, how) if foreign else _own(service, namespace, source, how)
    )
    report = Imported(foreign.name if foreign else OWN, how.dry_run, notes=whence.notes())
    _look(whence.items(), report)
    if report.bad_records and not how.skip_bad:
        told = "; ".join(report.bad[:3])
        raise InvalidArgument(
            f"{report.bad_records} of {report.read} records cannot be read, so nothing was imported: {told}",
            hint="mend them, or leave them out by --skip-bad",
        )
    if not how.dry_run:
        await service.namespaces.get(namespace)
        await whence.begin()
    incoming = Incoming(service, namespace, whence.audit, whence.principal, model=whence.model, dry=how.dry_run)
    incoming.fates = report.memories
    for number, item in enumerate(whence.items(), 1):
        if isinstance(item, Arrival):
            await incoming.add(item)
        elif not isinstance(item, Bad) and not how.dry_run:
            await incoming.flush()
            await restore(service.backend, namespace, item, report.others)
        if tell and (number % _TOLD_EVERY == 0 or number == report.read):
            tell(number, report.read)
    await incoming.flush()
    report.notes += sorted(incoming.warnings)
    return report


def _look(items: Iterator[Item], report: Imported) -> None:
    for item in items:
        report.read += 1
        if isinstance(item, Bad):
            report.bad_records += 1
            if len(report.bad) < _NAMED:
                report.bad.append(f"{item.where}: {item.reason}")


@dataclass(slots=True)
class _Own:
    """A file of ours."""

    service: Service
    source: Source
    model: Model
    principal: Principal | None = None

    async def begin(self) -> None:
        """Nothing is to be done before."""

    def audit(self, ids: Sequence[str]) -> AuditEntry:
        """Say that the console did it."""
        return system_entry(CONSOLE, OP, ids)

    def items(self) -> Iterator[Item]:
        """Read it."""
        return _items(self.service, self.source, self.model)

    def notes(self) -> list[str]:
        """Say what a person should know before."""
        return _notes(self.source, self.model)


@dataclass(slots=True)
class _Foreign:
    """A file of others, whose memories become one agent's; only `begin` gives that an owner id."""

    service: Service
    source: Source
    format: Format
    wish: Wish
    caller: Caller
    principal: Principal
    model: Model

    @classmethod
    async def of(cls, service: Service, namespace: str, source: Source, known: Format, how: How) -> _Foreign:
        """Look up whose they become.

        Raises:
            InvalidArgument: nobody's. KeyMissing: they are to be encrypted, and there is no master key.
        """
        agent = how.agent or service.settings.agent
        if agent is None:
            raise InvalidArgument("whose shall these memories be?", hint="say it by --agent NAME")
        caller = Caller(namespace, check_name(agent, "agent"), by=CONSOLE, origin=f"{CONSOLE} {os.getpid()}")
        if how.wish.sensitive:
            await service.vault.check()
        principal, model = (
            await resolve(service.backend, RequestContext(caller)),
            await service.models.current(namespace),
        )
        return cls(service, source, known, how.wish, caller, principal, model)

    async def begin(self) -> None:
        """Give the agent an owner id if it has none."""
        self.principal = await resolve_writer(self.service.backend, RequestContext(self.caller))

    def audit(self, ids: Sequence[str]) -> AuditEntry:
        """Say that the console did it as the agent."""
        return self.caller.audit(OP, ids)

    def items(self) -> Iterator[Item]:
        """Read it."""
        for found in self.format.read(self.source):
            if isinstance(found, Bad):
                yield found
                continue
            try:
                yield from_foreign(self.service.settings, self.principal, self.format.name, found, self.wish)
            except MemoryServiceError as error:
                yield Bad(found.where, error.message)

    def notes(self) -> list[str]:
        """There is nothing to be said."""
        return []


async def _own(service: Service, namespace: str, source: Source, how: How) -> _Own:
    if how.agent is not None:
        raise InvalidArgument("--agent goes with foreign formats", hint="our own files say whose each memory is")
    return _Own(service, source, await service.models.current(namespace))


def _items(service: Service, source: Source, model: Model) -> Iterator[Item]:
    header: Header | None = None
    counts: Counter[str] = Counter()
    for number, raw in source.lines():
        where = f"line {number}"
        try:
            line = lines.parse(raw)
            counts[line.kind] += 1
            if isinstance(line, Header):
                header = line
            elif header is None:
                yield Bad(where, "the file does not begin with its header")
            elif isinstance(line, End):
                yield from _ended(where, line, counts)
            elif isinstance(line, MemoryLine):
                yield from_line(service, header, model, where, line)
            else:
                yield line
        except ValueError as error:
            yield Bad(where, str(error))
        except MemoryServiceError as error:
            yield Bad(where, error.message)
    if not counts["end"]:
        yield Bad("the end", "the file is not whole: its last line is missing")


def _ended(where: str, line: End, counts: Counter[str]) -> Iterator[Bad]:
    """Tell of lines that are missing, or too many."""
    said = {"agent": line.agents, "quarantine": line.quarantine, "memory": line.memories, "grant": line.grants}
    for kind, number in said.items():
        if counts[kind] != number:
            yield Bad(where, f"{number} lines of kind {kind} should be here; there are {counts[kind]}")


def _notes(source: Source, model: Model) -> list[str]:
    """Say what a person should know of a file of ours before it is brought in."""
    _, first = next(source.lines(), (0, b""))
    try:
        said = lines.parse(first)
    except ValueError:
        return []
    if not isinstance(said, Header) or not said.vectors or said.model == model.name:
        return []
    return [f"its vectors are of {said.model}; all are made anew with {model.name}"]
