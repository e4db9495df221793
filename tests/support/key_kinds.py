"""The kinds of keys in memory_core/records/keys.py, and what Redis holds of each."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from memory_core.records import keys as module
from memory_core.records.keys import Keys
from memory_core.redis_client import Client

_PREFIXES = {"prefix", "memory_prefix", "chunk_prefix", "same_prefix", "job_streams"}
"""Beginnings of keys that are named as a whole too."""
_INDEXES = {"index_alias", "index", "task_index"}
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "chunk": ("*", 1),
    "hash_of_chunk": ("*", 1),
    "same": ("*", ""),
    "cached_vectors": ("*", ""),
    "idempotency": ("*", ""),
    "jobs": ("*",),
}
_OF_ALL: dict[str, str] = {
    "rm:namespaces": module.NAMESPACES,
    "rm:sidecars": module.SIDECARS,
    "rm:sweeper": module.SWEEPER,
    "rm:audited": module.AUDITED,
    "rm:functions": module.LIBRARY_PROOF,
    "rm:sessions": module.SESSION_KEY,
    "rm:bell:": module.bell(0),
    "rm:asks:": module.asks(0, "m"),
    "rm:bulk:": module.bulk(0, "m"),
    "rm:reply:": module.reply("1"),
    "rm:sidecar:": module.sidecar("1"),
    "rm:token:": module.token_key("1"),
    "rm:operator:": module.operator_key("1"),
    "rm:ended:": module.ended_sessions("1"),
    "rm:follows:": module.followed_resources("1"),
}
"""The kinds outside namespaces, each with a key of it."""
_NAMES = {"namespace", *_PREFIXES, *_INDEXES}


def kinds() -> dict[str, bool]:
    """Return the kinds of a namespace without their prefix, and whether a name or id follows."""
    keys, found = Keys(""), dict[str, bool]()
    for name in vars(Keys):
        if name.startswith("__") or name in _NAMES or name == "hash_of_chunk":
            continue
        key = getattr(keys, name)
        text = key if isinstance(key, str) else key(*_ARGUMENTS.get(name, ("*",)))
        rest, starred, _ = text.removeprefix(keys.prefix).partition("*")
        if name == "jobs":
            rest, starred = keys.job_streams.removeprefix(keys.prefix) + "vec_", "*"
        if name == "cached_vectors":
            rest, starred = "emb:", "*"
        found[rest] = bool(starred)
    return found


def global_kinds() -> set[str]:
    """Return the kinds outside namespaces."""
    assert all(key.startswith(kind) for kind, key in _OF_ALL.items())
    named = {value for name, value in vars(module).items() if name.isupper() and str(value).startswith("rm:")}
    built = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    helpers = {"digest", "namespace_of", "lane_of", "model_key", "vector_field", "Keys", "_Key", "_KeyOf"}
    assert named <= set(_OF_ALL.values()), "a constant of keys.py is missing here"
    assert len(built - helpers) == len(_OF_ALL) - len(named), "a function of keys.py is missing here"
    return set(_OF_ALL)


def kind_of(key: str) -> str:
    """Return the kind of a namespace's key."""
    rest = key.partition("}:")[2]
    if kinds().get(rest) is False:
        return rest
    matching = [kind for kind, is_prefix in kinds().items() if is_prefix and rest.startswith(kind)]
    return max(matching, key=len, default=f"unknown key {key}")


@dataclass(slots=True)
class Held:
    """What Redis holds of a namespace, by kind: entries that never expire, and numbers of keys that do."""

    entries: Counter[str] = field(default_factory=Counter[str])
    expiring: Counter[str] = field(default_factory=Counter[str])
    longest: defaultdict[str, int] = field(default_factory=lambda: defaultdict[str, int](int))
    """The most entries of one key."""

    def add(self, other: Held) -> None:
        """Add what Redis held at another time."""
        self.entries |= other.entries
        self.expiring |= other.expiring
        for kind, entries in other.longest.items():
            self.longest[kind] = max(self.longest[kind], entries)

    @property
    def kinds(self) -> set[str]:
        """The kinds of which there are keys."""
        return {*self.entries, *self.expiring}


_GONE = -2
"""The TTL of a key that expired since the scan."""
_LENGTH = {b"hash": "HLEN", b"set": "SCARD", b"zset": "ZCARD", b"list": "LLEN", b"stream": "XLEN"}


async def held(client: Client, namespace: str) -> Held:
    """Read what Redis holds of a namespace. An empty stream counts as one entry."""
    found = Held()
    async for raw in client.scan_iter(f"rm:{{{namespace}}}:*", count=1000):
        key, kind = raw.decode(), kind_of(raw.decode())
        command = _LENGTH.get(await client.type(key))
        entries = int(await client.execute_command(command, key)) if command else 1
        seconds = await client.ttl(key)
        if seconds == _GONE:
            continue
        if seconds >= 0:
            found.expiring[kind] += 1
        else:
            lasting = entries - await _expiring_fields(client, key, kind)
            found.entries[kind] += lasting if entries else 1
        found.longest[kind] = max(found.longest[kind], entries)
    return found


async def _expiring_fields(client: Client, key: str, kind: str) -> int:
    if kind not in ("seq:", "turns"):
        return 0
    fields = await client.hkeys(key)
    times = await client.execute_command("HTTL", key, "FIELDS", len(fields), *fields)
    return sum(time >= 0 for time in times)
