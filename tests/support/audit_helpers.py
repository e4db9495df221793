"""Audit trails built as a server builds them, and helpers that read the audit from Redis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from memory_core.crypto.keyring import Keyring, Secret
from memory_core.crypto.signed_entry import SignedEntry, sign
from memory_core.records.audit_entry import new_entry
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_server.security.audit import reader
from memory_server.security.audit.chain import first_problem
from memory_server.security.audit.seals import Seal, make_seal
from memory_server.security.audit.verifier import AuditCounts, AuditReport, verify
from support.stack import Server

NAMESPACE = "trail"
KEYRING = Keyring([Secret(bytes(range(32)))])
OPS = ("store_memory", "semantic_search", "retrieve_memory", "clear_memory")


@dataclass(frozen=True)
class Trail:
    """An audit trail as Redis could hold it."""

    entries: tuple[SignedEntry, ...]
    seals: tuple[Seal, ...]
    counters: AuditCounts

    def check(self, keyring: Keyring = KEYRING, expect: str | None = None, namespace: str = NAMESPACE) -> AuditReport:
        """Verify the trail."""
        return verify(namespace, self.entries, self.seals, self.counters, keyring, expect)

    def but(self, entries: Sequence[SignedEntry] | None = None, seals: Sequence[Seal] | None = None) -> Trail:
        """Return a copy with other entries or seals."""
        new = replace(self, entries=self.entries if entries is None else tuple(entries))
        return replace(new, seals=self.seals if seals is None else tuple(seals))


def written(number: int, random: Random, keyring: Keyring = KEYRING) -> SignedEntry:
    """Build an entry as a server and a Function build one together."""
    ids = [f"{random.getrandbits(64):026x}"] * random.randint(0, 2)
    entry = new_entry(random.choice(["alice", "bob"]), random.choice(OPS), ids, "http 127.0.0.1")
    if random.random() < 0.3:
        entry |= {"outcome": random.choice(["ok", "not_found", "forbidden"]), "count": len(ids)}
    entry = sign(keyring, NAMESPACE, entry)
    fields = {"n": number, "at": f"{1700000000 + number}.000000", "who": entry["who"], "op": entry["op"]}
    fields |= {"ids": " ".join(ids), "outcome": entry.get("outcome", "ok"), "from": entry["from"]}
    fields |= {name: entry[name] for name in ("count", "nonce", "key", "mac") if name in entry}
    parts = [str(part).encode() for pair in fields.items() for part in pair]
    return SignedEntry(f"{1700000000000 + number // 3}-{number % 3}".encode(), tuple(parts))


def sealed_trail(number: int, sizes: Sequence[int], random: Random, keyring: Keyring = KEYRING) -> Trail:
    """Build a trail of `number` entries, sealed in slices of the sizes in turn; the rest stays unsealed."""
    entries = [written(position + 1, random, keyring) for position in range(number)]
    seals: list[Seal] = []
    at = 0
    while at + (size := sizes[len(seals) % len(sizes)]) <= number:
        seals.append(seal_over(entries[at : at + size], seals[-1] if seals else None, keyring))
        at += size
    return Trail(tuple(entries), tuple(seals), AuditCounts(number, at))


def seal_over(entries: Sequence[SignedEntry], previous: Seal | None, keyring: Keyring = KEYRING) -> Seal:
    """Build the seal as a sealer does."""
    broken = first_problem(keyring, NAMESPACE, previous, entries)
    return make_seal(keyring, NAMESPACE, previous, entries, at="1700000000.000000", broken=broken)


async def read_entries(client: Client, namespace: str) -> list[dict[str, str]]:
    """Return the fields of all entries of a namespace."""
    return [entry.fields async for page in reader.walk(client, Keys(namespace)) for entry in page]


@dataclass(slots=True)
class ChangeCount:
    """Counts the entries written together with a change, except heartbeats. Reads each entry once."""

    client: Client
    keys: Keys
    _last: bytes = b""
    _count: int = 0

    async def read(self) -> int:
        """Add the entries written since the last call and return the sum."""
        while page := await reader.entries_after(self.client, self.keys, self._last, reader.AT_ONCE):
            self._last = page[-1].id
            fields = [entry.fields for entry in page]
            self._count += sum("count" not in entry and entry["op"] != "update_agent_heartbeat" for entry in fields)
        return self._count


async def flushed_entries(server: Server, client: Client, namespace: str) -> list[dict[str, str]]:
    """Flush the server's buffered entries, then return the fields of all entries."""
    assert await server.service.auditor.flush()
    return await read_entries(client, namespace)


async def verify_audit(server: Server, client: Client, namespace: str) -> AuditReport:
    """Verify a namespace's audit in Redis with the server's keys."""
    return await reader.check(client, Keys(namespace), server.service.backend.keyring)


async def is_sealed(client: Client, namespace: str) -> bool:
    """Whether there are entries and all of them are sealed."""
    counted = await reader.counters(client, Keys(namespace))
    return 0 < counted.given == counted.sealed
