"""Imports the owners, quarantine and grants of an export."""

from __future__ import annotations

from collections import Counter
from typing import Any

from memory_core.records import owners
from memory_core.records.audit_entry import system_entry
from memory_core.records.grant_proof import GrantProof
from memory_core.records.keys import Keys
from memory_core.records.times import to_redis
from memory_server.engine.redis_backend import Backend
from memory_server.operations.quarantine import CONSOLE, quarantine, quarantined
from memory_server.transfer.export_lines import AgentLine, GrantLine, QuarantineLine, from_text

OP = "import"


async def restore(
    backend: Backend, namespace: str, line: AgentLine | QuarantineLine | GrantLine, counts: Counter[str]
) -> None:
    """Import a line, and count its outcome by kind."""
    match line:
        case AgentLine():
            status = await _restore_agent(backend, Keys(namespace), line)
        case QuarantineLine():
            status = "kept"
            if all(one.agent != line.name for one in await quarantined(backend, namespace)):
                await quarantine(backend, namespace, line.name, from_text(line.since))
                status = "imported"
        case GrantLine():
            status = await _restore_grant(backend, Keys(namespace), line)
    counts[f"{line.kind} {status}"] += 1


async def _restore_agent(backend: Backend, keys: Keys, line: AgentLine) -> str:
    await backend.client()  # loads the signing key
    owner_keys = [keys.owner(owner) for owner in line.owners]
    answer = await backend.write(
        "rm1_import_agent",
        [keys.agent(line.name), keys.audit, keys.counters, keys.tombstones, *owner_keys],
        repeatable=True,
        agent=line.name,
        owner=line.owner,
        owners=list(dict.fromkeys(line.owners)),
        proofs=owners.proofs(backend.integrity, keys.namespace, line.name, line.owners),
        audit=system_entry(CONSOLE, OP, [line.name]),
    )
    return answer["status"]


async def _restore_grant(backend: Backend, keys: Keys, line: GrantLine) -> str:
    def period(since: str, until: str | None) -> dict[str, Any]:
        return {"since": to_redis(from_text(since)), "ends": to_redis(from_text(until))}

    await backend.client()  # loads the signing key
    proof = GrantProof(
        id=line.id,
        by=line.grantor,
        by_owner=line.grantor_owner,
        owner=line.grantee_owner,
        permission=line.permission,
        ends=max(from_text(until) for until in (line.until, *(part.until for part in line.via or ()))) * 1_000_000 + 1,
        tokens=frozenset([*line.tokens, *(token for part in line.via or () for token in part.tokens)]),
    )
    # The Function's argument `from` is a Python keyword.
    grantor: dict[str, Any] = {"from": line.grantor}
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
        selector=line.selector,
        note=line.note or "",
        at=to_redis(from_text(line.at)),
        own=line.tokens,
        proof=proof.sign(backend.integrity, keys.namespace, line.grantee),
        via={part.parent: {"tokens": part.tokens, **period(part.since, part.until)} for part in line.via or ()},
        audit=system_entry(CONSOLE, OP, [line.id]),
        **grantor,
        **period(line.since, line.until),
    )
    return answer["status"]
