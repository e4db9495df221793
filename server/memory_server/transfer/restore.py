"""Brings what stands around memories into a namespace: whose they are, who may see them, and of whom nobody shall."""

from __future__ import annotations

from collections import Counter
from typing import Any

from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.records.times import to_redis
from memory_server.engine.backend import Backend
from memory_server.operations.quarantine import CONSOLE, quarantine, quarantined
from memory_server.transfer.lines import AgentLine, GrantLine, QuarantineLine, from_text

OP = "import"


async def restore_agent(backend: Backend, namespace: str, line: AgentLine) -> str:
    """Give a name the owner ids that it has in the file; say what came of it: imported or kept."""
    keys = Keys(namespace)
    answer = await backend.write(
        "rm1_import_agent",
        [
            keys.agent(line.name),
            keys.audit,
            keys.counters,
            keys.tombstones,
            *(keys.owner(owner) for owner in line.owners),
        ],
        repeatable=True,
        agent=line.name,
        owner=line.owner,
        owners=list(dict.fromkeys(line.owners)),
        audit=system_entry(CONSOLE, OP, [line.name]),
    )
    return answer["status"]


async def restore_quarantine(backend: Backend, namespace: str, line: QuarantineLine) -> str:
    """Put an agent under quarantine unless it is, since whenever; say what came of it."""
    if any(one.agent == line.name for one in await quarantined(backend, namespace)):
        return "kept"
    await quarantine(backend, namespace, line.name, from_text(line.since))
    return "imported"


async def restore_grant(backend: Backend, namespace: str, line: GrantLine) -> str:
    """Let the grantee see what it saw; say what came of it, as rm1_import_grant does."""
    keys = Keys(namespace)
    giver: dict[str, Any] = {"from": line.grantor}
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
        since=to_redis(from_text(line.since)),
        ends=to_redis(from_text(line.until)),
        own=line.tokens,
        via={
            part.parent: {
                "tokens": part.tokens,
                "since": to_redis(from_text(part.since)),
                "ends": to_redis(from_text(part.until)),
            }
            for part in line.via or ()
        },
        audit=system_entry(CONSOLE, OP, [line.id]),
        **giver,
    )
    return answer["status"]


async def restore(
    backend: Backend, namespace: str, line: AgentLine | QuarantineLine | GrantLine, counts: Counter[str]
) -> None:
    """Bring in one of them, and count what came of it."""
    match line:
        case AgentLine():
            status = await restore_agent(backend, namespace, line)
        case QuarantineLine():
            status = await restore_quarantine(backend, namespace, line)
        case GrantLine():
            status = await restore_grant(backend, namespace, line)
    counts[f"{line.kind} {status}"] += 1
