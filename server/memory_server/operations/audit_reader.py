"""The audit as an operator reads it: page by page with each entry's proof, and checked as a whole on demand."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict, dataclass

from cachetools import TTLCache

from memory_core.errors import InvalidArgument, echo
from memory_core.records.keys import Keys
from memory_core.records.signed_entry import Entry
from memory_core.records.times import to_iso
from memory_core.store import redis_time
from memory_core.store.connection import Client, store_errors
from memory_server.contract.dashboard import AuditAnswer, AuditCheckAnswer, AuditEntry, AuditProblem
from memory_server.engine.request import Caller
from memory_server.operations.admin_view import check_admin
from memory_server.security.audit import reader
from memory_server.security.audit.verifier import Report
from memory_server.service import Service

_SCANNED = 5000
"""Entries looked through for one page that is narrowed down."""
_CURSOR = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_FRESH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Which entries are wanted: those of one agent, operation or outcome, or that name an id."""

    who: str | None = None
    op: str | None = None
    outcome: str | None = None
    names: str | None = None

    def takes(self, fields: dict[str, str]) -> bool:
        """Whether an entry is wanted."""
        return (
            (not self.who or self.who in (fields.get("who"), fields.get("as")))
            and (not self.op or fields.get("op") == self.op)
            and (not self.outcome or (fields.get("outcome") == "ok") == (self.outcome == "ok"))
            and (not self.names or self.names in fields.get("ids", "").split())
        )


async def read_audit(
    service: Service, caller: Caller, narrowed: Narrowed, *, limit: int, cursor: str | None
) -> AuditAnswer:
    """Show entries before a cursor, newest first.

    Raises:
        Forbidden: the caller is no operator.
        InvalidArgument: the cursor is none.
    """
    check_admin(caller)
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise InvalidArgument(f"cursor {echo(cursor)} is not one", hint="use next_cursor as it was given")
    keys = Keys(caller.namespace)
    await service.auditor.flush()
    counted = await service.backend.read(lambda client: reader.counters(client, keys))
    found, after = await service.backend.read(lambda client: _page(client, keys, narrowed, limit, cursor))
    keyring = service.backend.keyring
    keyed = keyring.signer is not None
    return AuditAnswer(
        entries=[
            _shown(entry, entry.check(keyring, caller.namespace) if keyed else None, counted.sealed) for entry in found
        ],
        next_cursor=after,
        given=counted.given,
        sealed=counted.sealed,
        keyed=keyed,
    )


class Checks:
    """Checks of whole trails, one at a time: each reads and proves every entry."""

    def __init__(self) -> None:
        self._checking = asyncio.Lock()
        self._known: TTLCache[str, AuditCheckAnswer] = TTLCache(1, ttl=_FRESH_SECONDS)

    async def check(self, service: Service, caller: Caller) -> AuditCheckAnswer:
        """Check the whole audit of the caller's namespace.

        Raises:
            Forbidden: the caller is no operator.
        """
        check_admin(caller)
        async with self._checking:
            known = self._known.get(caller.namespace)
            if known is None:
                client, keyring = await service.backend.client(), service.backend.keyring
                known = self._known[caller.namespace] = _report(
                    await reader.check(client, Keys(caller.namespace), keyring)
                )
            return known


def _report(report: Report) -> AuditCheckAnswer:
    found = asdict(report)
    del found["namespace"]
    problems = [AuditProblem(**problem) for problem in found.pop("problems")]
    return AuditCheckAnswer(ok=report.ok, problems=problems, checked_at=to_iso(redis_time.now()) or "", **found)


async def _page(
    client: Client, keys: Keys, narrowed: Narrowed, limit: int, cursor: str | None
) -> tuple[list[Entry], str | None]:
    """Collect wanted entries until the page is full, the trail ends, or enough was looked through."""
    found: list[Entry] = []
    end, seen = f"({cursor}" if cursor else "+", 0
    while True:
        async with store_errors():
            rows = await client.execute_command(b"XREVRANGE", keys.audit, end, "-", "COUNT", reader.AT_ONCE)
        for at, parts in rows:
            entry = Entry(at, tuple(parts))
            end, seen = f"({at.decode()}", seen + 1
            if narrowed.takes(entry.fields):
                found.append(entry)
            if len(found) == limit or seen == _SCANNED:
                return found, end[1:]
        if len(rows) < reader.AT_ONCE:
            return found, None


def _shown(entry: Entry, proof: str | None, sealed: int) -> AuditEntry:
    fields = entry.fields
    count = fields.get("count", "")
    return AuditEntry(
        id=entry.id.decode(),
        number=entry.number,
        at=to_iso(entry.position[0] / 1000) or "",
        who=fields.get("who", ""),
        acted_as=fields.get("as") or None,
        op=fields.get("op", ""),
        outcome=fields.get("outcome", ""),
        ids=fields.get("ids", "").split(),
        count=int(count) if count.isdigit() else None,
        origin=fields.get("from", ""),
        proof=proof,
        sealed=0 < entry.number <= sealed,
    )
