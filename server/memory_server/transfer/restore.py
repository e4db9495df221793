"""Imports the owners, quarantine and grants of an export.

The scope tokens of a grant are derived again from its selector and grantor. Those in the file can only narrow them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from memory_core.errors import Conflict, echo
from memory_core.records import owners
from memory_core.records.audit_entry import system_entry
from memory_core.records.grant_proof import GrantProof
from memory_core.records.keys import Keys
from memory_core.records.times import to_redis
from memory_server.engine.principals import SIGNING_ATTEMPTS, read_owners, resolve
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.operations.quarantine import CONSOLE, quarantine, quarantined
from memory_server.sharing.grants import Selector
from memory_server.sharing.proofs import grantable
from memory_server.transfer.export_lines import AgentLine, GrantLine, QuarantineLine, from_text
from memory_server.transfer.incoming_memory import Arrival

OP = "import"


class Restorer:
    """Imports lines into a namespace, and counts their outcomes by kind in `counts`.

    `file` identifies a file that no key of this server signed. It has no authority over what exists here: it brings
    agents that are new here, and no grants.
    """

    def __init__(self, backend: Backend, namespace: str, file: str | None, counts: Counter[str]) -> None:
        self._backend, self._namespace, self._file, self._counts = backend, namespace, file, counts
        self._accepted: set[str] = set()

    async def restore(self, line: AgentLine | QuarantineLine | GrantLine) -> None:
        """Import a line."""
        keys = Keys(self._namespace)
        match line:
            case AgentLine():
                status = await _restore_agent(self._backend, keys, line, self._file)
                self._accepted |= {line.name} if status in ("imported", "kept") else set()
            case QuarantineLine():
                status = await self._quarantine(line) if self._may_name(line.name) else "other_agents"
            case GrantLine():
                status = "unsigned" if self._file else await _restore_grant(self._backend, keys, line)
        self._counts[f"{line.kind} {status}"] += 1

    def attribute(self, arrival: Arrival) -> Arrival:
        """Return a memory whose writer the file may name: otherwise its owner."""
        if self._may_name(arrival.record.writer):
            return arrival
        return replace(arrival, record=replace(arrival.record, writer=arrival.agent))

    def _may_name(self, agent: str) -> bool:
        return self._file is None or agent in self._accepted

    async def _quarantine(self, line: QuarantineLine) -> str:
        if any(one.agent == line.name for one in await quarantined(self._backend, self._namespace)):
            return "kept"
        await quarantine(self._backend, self._namespace, line.name, from_text(line.since))
        return "imported"


async def _restore_agent(backend: Backend, keys: Keys, line: AgentLine, file: str | None) -> str:
    await backend.client()  # loads the signing key
    integrity, namespace = backend.integrity, keys.namespace
    named = list(dict.fromkeys([*line.owners, *line.kept]))
    for _ in range(SIGNING_ATTEMPTS):
        since = (await read_owners(backend, namespace, line.name)).since
        codes = owners.proofs(integrity, namespace, line.name, line.owners, since)
        kept = owners.kept_proofs(integrity, namespace, line.name, line.kept)
        answer = await backend.write(
            "rm1_import_agent",
            [keys.agent(line.name), keys.audit, keys.counters, keys.tombstones, *map(keys.owner, named)],
            repeatable=True,
            agent=line.name,
            owner=line.owner,
            owners=list(dict.fromkeys(line.owners)),
            kept=list(dict.fromkeys(line.kept)),
            proofs={"codes": codes, "kept": kept, "since": since} if integrity.signs else None,
            marks={owner: owners.file_mark(integrity, namespace, owner, file) for owner in named} if file else None,
            audit=system_entry(CONSOLE, OP, [line.name]),
        )
        if answer["status"] != "changed":
            return answer["status"]
    raise Conflict(f"{echo(line.name)} keeps being changed by others", hint="import it again")


async def _restore_grant(backend: Backend, keys: Keys, line: GrantLine) -> str:
    def period(since: str, until: str | None) -> dict[str, Any]:
        return {"since": to_redis(from_text(since)), "ends": to_redis(from_text(until))}

    selector = Selector.of(line.selects, line.values)
    # The Function's argument `from` is a Python keyword.
    grantor: dict[str, Any] = {"from": line.grantor}
    for _ in range(SIGNING_ATTEMPTS):
        answer = await backend.write(
            "rm1_import_grant",
            [keys.audit, keys.counters],
            repeatable=True,
            prefix=keys.prefix,
            id=line.id,
            to=line.grantee,
            from_owner=line.grantor_owner,
            to_owner=line.grantee_owner,
            permission=line.permission,
            kind=line.selects,
            shown=line.values,
            values=selector.values,
            selector=selector.digest,
            note=line.note or "",
            at=to_redis(from_text(line.at)),
            own=line.tokens,
            proof=await _prove(backend, keys.namespace, line, selector),
            via={part.parent: {"tokens": part.tokens, **period(part.since, part.until)} for part in line.via or ()},
            audit=system_entry(CONSOLE, OP, [line.id]),
            **grantor,
            **period(line.since, line.until),
        )
        if answer["status"] != "changed":
            return answer["status"]
    raise Conflict(f"{echo(line.grantor)} keeps being changed by others", hint="import it again")


async def _prove(backend: Backend, namespace: str, line: GrantLine, selector: Selector) -> dict[str, str] | None:
    """Sign those tokens of the file that its grantor could give here and now. None without a key."""
    await backend.client()  # loads the signing key
    if not backend.integrity.signs:
        return None
    grantor = await resolve(backend, RequestContext(Caller(namespace, line.grantor)))
    named = {*line.tokens, *(token for part in line.via or () for token in part.tokens)}
    proof = GrantProof(
        id=line.id,
        by=line.grantor,
        by_owner=line.grantor_owner,
        owner=line.grantee_owner,
        permission=line.permission,
        ends=max(from_text(until) for until in (line.until, *(part.until for part in line.via or ()))) * 1_000_000 + 1,
        tokens=frozenset(named & await grantable(backend, grantor, grantor.owners, selector)),
    )
    return proof.sign(backend.integrity, namespace, line.grantee)
