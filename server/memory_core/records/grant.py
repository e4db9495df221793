"""Reads a principal from Redis: the owner ids of its name, and what grants add.

One pipeline reads all of it with Redis's clock, so no grant counts after its end. Each record is authenticated: an
owner id or grant that fails its check does not count, and a quarantine mark that fails it hides everything.
"""

from __future__ import annotations

from typing import Any

from memory_core.records import grant_proof, owners, quarantine
from memory_core.records.authority_codes import AuthorityCodes
from memory_core.records.codec import unpack
from memory_core.records.damage import or_none
from memory_core.records.keys import Keys
from memory_core.records.scope import Grant, Part, Principal, owner_token

COMMANDS = 5
_MICROSECONDS = 1_000_000


def ask(pipe: Any, keys: Keys, agent: str) -> None:
    """Add COMMANDS commands to a pipeline; `principal_of` reads their answers."""
    pipe.hmget(keys.agent(agent), owners.FIELDS)
    pipe.hgetall(keys.granted(agent))
    pipe.smembers(keys.tombstones)
    pipe.hgetall(keys.quarantined)
    pipe.time()


def principal_of(namespace: str, agent: str, admin: bool, rows: list[Any], integrity: AuthorityCodes) -> Principal:
    """Build a principal from the answers to `ask`. Grants to an earlier agent of the same name are ignored.

    Raises:
        Tampered: the owner id of the agent's name fails its check.
    """
    owner_row, entries, tombstones, marks, (seconds, microseconds) = rows
    owned = owners.read(integrity, namespace, agent, owner_row)
    now = int(seconds) + int(microseconds) / _MICROSECONDS

    def read(grant_id: str, packed: bytes) -> Grant | None:
        entry = _entry(packed, owned.current)
        if entry is None or grant_proof.check(integrity, namespace, agent, grant_id, entry):
            return None
        return _grant(grant_id, entry, now)

    grants = [
        or_none(lambda grant_id=grant_id, packed=packed: read(grant_id.decode(), packed))
        for grant_id, packed in entries.items()
    ]
    return Principal(
        namespace=namespace,
        agent=agent,
        owner=owned.current,
        owners=owned.all,
        kept=owned.kept,
        grants=tuple(sorted(filter(None, grants), key=lambda grant: grant.id)),
        hidden=frozenset(owner_token(owner.decode()) for owner in tombstones),
        quarantined=tuple(sorted(quarantine.read(integrity, namespace, marks).items())),
        admin=admin,
    )


def _entry(packed: bytes, owner: str | None) -> dict[str, Any] | None:
    """Read the entry of a grant to an owner id; redis/functions/05_permission.lua defines its form."""
    entry: dict[str, Any] = unpack(packed)
    return entry if owner is not None and entry.get("owner") == owner else None


def _grant(grant_id: str, entry: dict[str, Any], now: float) -> Grant | None:
    """Read the parts of a grant that are in force."""
    own = {"tokens": entry["own"], "at": entry["at"], "ends": entry["ends"]}
    parts = [own, *dict(entry["via"]).values()]
    living = tuple(
        Part(tuple(part["tokens"]), part["at"] / _MICROSECONDS)
        for part in parts
        if part["tokens"] and part["ends"] / _MICROSECONDS > now
    )
    if not living:
        return None
    ends = own["ends"] / _MICROSECONDS
    mine = tuple(own["tokens"]) if ends > now else ()
    return Grant(grant_id, entry["by"], entry["permission"] == "write", living, mine, ends)
