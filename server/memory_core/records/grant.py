"""Reads a principal from Redis: the owner ids of its name, and what grants add.

One pipeline reads all of it with Redis's clock, so no grant counts after its end.
"""

from __future__ import annotations

from typing import Any

from memory_core.records.codec import DecodeError, unpack
from memory_core.records.keys import Keys
from memory_core.records.names import split_labels
from memory_core.records.scope import Grant, Part, Principal, owner_token

COMMANDS = 5
_MICROSECONDS = 1_000_000


def ask(pipe: Any, keys: Keys, agent: str) -> None:
    """Add COMMANDS commands to a pipeline; `principal_of` reads their answers."""
    pipe.hmget(keys.agent(agent), ["owner", "owners", "kept"])
    pipe.hgetall(keys.granted(agent))
    pipe.smembers(keys.tombstones)
    pipe.hgetall(keys.quarantined)
    pipe.time()


def principal_of(namespace: str, agent: str, admin: bool, rows: list[Any]) -> Principal:
    """Build a principal from the answers to `ask`. Grants to an earlier agent of the same name are ignored."""
    (owner_row, owners_row, kept_row), entries, tombstones, quarantined, (seconds, microseconds) = rows
    owner = owner_row.decode() if owner_row else None
    now = int(seconds) + int(microseconds) / _MICROSECONDS
    grants = (_grant(grant_id.decode(), packed, owner, now) for grant_id, packed in entries.items())
    return Principal(
        namespace=namespace,
        agent=agent,
        owner=owner,
        owners=split_labels(owners_row and owners_row.decode()),
        kept=split_labels(kept_row and kept_row.decode()),
        grants=tuple(sorted((grant for grant in grants if grant), key=lambda grant: grant.id)),
        hidden=frozenset(owner_token(owner.decode()) for owner in tombstones),
        quarantined=tuple(sorted((name.decode(), float(since)) for name, since in quarantined.items())),
        admin=admin,
    )


def _grant(grant_id: str, packed: bytes, owner: str | None, now: float) -> Grant | None:
    """Read the parts of a grant that are in force; redis/functions/05_permission.lua defines its form."""
    try:
        entry: dict[str, Any] = unpack(packed)
    except DecodeError:
        return None
    if owner is None or entry["owner"] != owner:
        return None
    own = {"tokens": entry["own"], "at": entry["at"], "ends": entry["ends"]}
    parts = [own, *dict(entry["via"]).values()]
    living = tuple(
        Part(tuple(part["tokens"]), part["at"] / _MICROSECONDS)
        for part in parts
        if part["tokens"] and part["ends"] / _MICROSECONDS > now
    )
    return Grant(grant_id, entry["by"], entry["permission"] == "write", living) if living else None
