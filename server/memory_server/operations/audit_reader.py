"""Shows the audit to operators: pages of entries with proofs, and a check of the whole audit."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import asdict

from memory_core.crypto.signed_entry import SignedEntry
from memory_core.errors import InvalidArgument, echo
from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.times import to_iso
from memory_core.redis_client import Client
from memory_core.store.connection import store_errors
from memory_server.contract.dashboard import AuditAnswer, AuditArguments, AuditCheckAnswer, AuditEntry, AuditProblem
from memory_server.engine.request_context import Caller
from memory_server.operations.admin_view import check_oversees
from memory_server.security.audit import reader
from memory_server.security.audit.verifier import AuditReport
from memory_server.service import Service

_SCANNED = 5000
"""Entries read at most for one filtered page."""
_CURSOR = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_FRESH_SECONDS = 5.0


async def read_audit(service: Service, caller: Caller, args: AuditArguments) -> AuditAnswer:
    """Show the entries before a cursor, newest first; raises Forbidden and, for a malformed cursor, InvalidArgument."""
    check_oversees(caller)
    if args.cursor is not None and not _CURSOR.fullmatch(args.cursor):
        raise InvalidArgument(f"unknown cursor {echo(args.cursor)}", hint="use next_cursor unchanged")
    keys = Keys(caller.namespace)
    await service.auditor.flush()
    counted = await service.backend.read(lambda client: reader.counters(client, keys))
    found, after = await service.backend.read(lambda client: _page(client, keys, args))
    keyring = service.backend.keyring
    keyed = keyring.signer is not None
    proofs = [entry.check(keyring, caller.namespace) if keyed else None for entry in found]
    entries = [_view(entry, proof, counted.sealed) for entry, proof in zip(found, proofs, strict=True)]
    return AuditAnswer(entries=entries, next_cursor=after, given=counted.given, sealed=counted.sealed, keyed=keyed)


class Checks:
    """Checks whole audits, one at a time because each check reads every entry."""

    def __init__(self) -> None:
        self._checking = asyncio.Lock()
        self._known: dict[str, tuple[float, AuditCheckAnswer]] = {}

    async def check(self, service: Service, caller: Caller) -> AuditCheckAnswer:
        """Check the whole audit of the caller's namespace; raises Forbidden."""
        check_oversees(caller)
        async with self._checking:
            at, known = self._known.get(caller.namespace, (0.0, None))
            if known is None or time.monotonic() - at > _FRESH_SECONDS:
                client, keyring = await service.backend.client(), service.backend.keyring
                known = _report(await reader.check(client, Keys(caller.namespace), keyring))
                self._known = {caller.namespace: (time.monotonic(), known)}
            return known


def _report(report: AuditReport) -> AuditCheckAnswer:
    found = asdict(report)
    del found["namespace"]
    problems = [AuditProblem(**problem) for problem in found.pop("problems")]
    return AuditCheckAnswer(ok=report.ok, problems=problems, checked_at=to_iso(redis_time.now()) or "", **found)


def _matches(fields: dict[str, str], args: AuditArguments) -> bool:
    return (
        (not args.who or args.who in (fields.get("who"), fields.get("as")))
        and (not args.op or fields.get("op") == args.op)
        and (not args.outcome or (fields.get("outcome") == "ok") == (args.outcome == "ok"))
        and (not args.names or args.names in fields.get("ids", "").split())
    )


async def _page(client: Client, keys: Keys, args: AuditArguments) -> tuple[list[SignedEntry], str | None]:
    found, seen, end = list[SignedEntry](), 0, f"({args.cursor}" if args.cursor else "+"
    while True:
        async with store_errors():
            rows = await client.execute_command(b"XREVRANGE", keys.audit, end, "-", "COUNT", reader.AT_ONCE)
        for at, parts in rows:
            entry = SignedEntry(at, tuple(parts))
            end, seen = f"({at.decode()}", seen + 1
            if _matches(entry.fields, args):
                found.append(entry)
            if len(found) == args.limit or seen == _SCANNED:
                return found, end[1:]
        if len(rows) < reader.AT_ONCE:
            return found, None


def _view(entry: SignedEntry, proof: str | None, sealed: int) -> AuditEntry:
    fields, count = entry.fields, entry.fields.get("count", "")
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
