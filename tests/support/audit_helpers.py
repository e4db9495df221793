"""What the tests of the audit share: trails made as a server makes them, and what Redis holds of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from memory_core.crypto.keyring import Keyring, Secret
from memory_core.crypto.signed_entry import Entry, sign
from memory_core.records.audit_entry import said
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_server.security.audit import reader
from memory_server.security.audit.chain import first_problem
from memory_server.security.audit.seals import Seal, make_seal
from memory_server.security.audit.verifier import Counters, Report, verify
from support.stack import Server

NAMESPACE = "trail"
KEYRING = Keyring([Secret(bytes(range(32)))])
OPS = ("store_memory", "semantic_search", "retrieve_memory", "clear_memory")


@dataclass(frozen=True)
class Trail:
    """A trail as it could stand in Redis."""

    entries: tuple[Entry, ...]
    seals: tuple[Seal, ...]
    counters: Counters

    def check(self, keyring: Keyring = KEYRING, expect: str | None = None, namespace: str = NAMESPACE) -> Report:
        """Verify it."""
        return verify(namespace, self.entries, self.seals, self.counters, keyring, expect)

    def but(self, entries: Sequence[Entry] | None = None, seals: Sequence[Seal] | None = None) -> Trail:
        """Give another with other entries or seals."""
        new = replace(self, entries=self.entries if entries is None else tuple(entries))
        return replace(new, seals=self.seals if seals is None else tuple(seals))


def written(number: int, random: Random, keyring: Keyring = KEYRING) -> Entry:
    """Make an entry as a server and a Function make one together."""
    ids = [f"{random.getrandbits(64):026x}"] * random.randint(0, 2)
    entry = said(random.choice(["alice", "bob"]), random.choice(OPS), ids, "http 127.0.0.1")
    if random.random() < 0.3:
        entry |= {"outcome": random.choice(["ok", "not_found", "forbidden"]), "count": len(ids)}
    entry = sign(keyring, NAMESPACE, entry)
    fields = {"n": number, "at": f"{1700000000 + number}.000000", "who": entry["who"], "op": entry["op"]}
    fields |= {"ids": " ".join(ids), "outcome": entry.get("outcome", "ok"), "from": entry["from"]}
    fields |= {name: entry[name] for name in ("count", "nonce", "key", "mac") if name in entry}
    parts = [str(part).encode() for pair in fields.items() for part in pair]
    return Entry(f"{1700000000000 + number // 3}-{number % 3}".encode(), tuple(parts))


def sealed_trail(number: int, sizes: Sequence[int], random: Random, keyring: Keyring = KEYRING) -> Trail:
    """Make a trail of so many entries, sealed in slices of some sizes by turns; what is left over is not sealed."""
    entries = [written(position + 1, random, keyring) for position in range(number)]
    seals: list[Seal] = []
    at = 0
    while at + (size := sizes[len(seals) % len(sizes)]) <= number:
        seals.append(seal_over(entries[at : at + size], seals[-1] if seals else None, keyring))
        at += size
    return Trail(tuple(entries), tuple(seals), Counters(number, at))


def seal_over(entries: Sequence[Entry], previous: Seal | None, keyring: Keyring = KEYRING) -> Seal:
    """Make the seal that a sealer would."""
    broken = first_problem(keyring, NAMESPACE, previous, entries)
    return make_seal(keyring, NAMESPACE, previous, entries, at="1700000000.000000", broken=broken)


async def in_redis(client: Client, namespace: str) -> list[dict[str, str]]:
    """Give the fields of all entries of a namespace."""
    return [entry.fields async for page in reader.walk(client, Keys(namespace)) for entry in page]


@dataclass(slots=True)
class ChangeCount:
    """Counts the entries that were written together with a change, except heartbeats. Reads each entry once."""

    client: Client
    keys: Keys
    _last: bytes = b""
    _count: int = 0

    async def read(self) -> int:
        """Count what was written since the last call too, and give the sum."""
        while page := await reader.entries_after(self.client, self.keys, self._last, reader.AT_ONCE):
            self._last = page[-1].id
            fields = [entry.fields for entry in page]
            self._count += sum("count" not in entry and entry["op"] != "update_agent_heartbeat" for entry in fields)
        return self._count


async def noted(server: Server, client: Client, namespace: str) -> list[dict[str, str]]:
    """The same, when all that the server holds is written."""
    assert await server.service.auditor.flush()
    return await in_redis(client, namespace)


async def checked(server: Server, client: Client, namespace: str) -> Report:
    """Verify what Redis holds of a namespace, by the server's keys."""
    return await reader.check(client, Keys(namespace), server.service.backend.keyring)


async def is_sealed(client: Client, namespace: str) -> bool:
    """Whether there are entries, and all of them are sealed."""
    counted = await reader.counters(client, Keys(namespace))
    return 0 < counted.given == counted.sealed
