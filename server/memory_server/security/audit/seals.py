"""Seals: each code covers the previous code and all entries since, so that removal and change are detected.

A seal's stream id is that of the last entry it covers.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from memory_core.crypto.keyring import Keyring, Secret, framed
from memory_core.crypto.signed_entry import SignedEntry, id_of, key_of, position_of
from memory_core.errors import KeyMissing

GENESIS = bytes(32)
"""The chain value before the first seal."""
_NUMBER, _CODES = re.compile(r"0|[1-9][0-9]{0,17}"), re.compile(r"[0-9a-f]{128}")
_FIELDS = ("first", "last", "chain", "at", "unsigned", "broken", "key")


@dataclass(frozen=True, slots=True)
class Seal:
    """The seal over the entries with the numbers `first` to `last`."""

    id: bytes
    first: int
    last: int
    chain: str
    at: str
    unsigned: int
    """Up to this number, entries were written before there was a key."""
    broken: str
    """The problem found when it was made, `<number>:<kind>`."""
    key: str
    mac: str

    @property
    def position(self) -> tuple[int, int]:
        """The position of the last entry that it covers."""
        return position_of(self.id)

    @property
    def head(self) -> str:
        """The number and the chain, to store elsewhere and compare later."""
        return f"{self.last}:{self.chain}"

    def fields(self) -> list[str]:
        """Names and values in turn, as Redis stores them."""
        return [part for name in (*_FIELDS, "mac") for part in (name, str(getattr(self, name)))]

    def is_genuine(self, keyring: Keyring, namespace: str) -> bool:
        """Whether a server made it; raises KeyMissing if this process does not know its key."""
        return hmac.compare_digest(_mac(keyring.secret(self.key), namespace, self), self.mac)


def make_seal(
    keyring: Keyring, namespace: str, previous: Seal | None, entries: Sequence[SignedEntry], *, at: str, broken: str
) -> Seal:
    """Seal the entries that follow the last seal; raises KeyMissing if this process has no key."""
    secret = keyring.signer
    if secret is None:
        raise KeyMissing("the audit cannot be sealed without a key")
    chain = start(secret, previous and previous.chain)
    for entry in entries:
        chain.update(entry.framed)
    last = entries[-1].number
    unsigned = Seal(
        id=entries[-1].id,
        first=next_number(previous, entries),
        last=last if last > 0 else next_number(previous, entries) + len(entries) - 1,
        chain=chain.hexdigest(),
        at=at,
        unsigned=unsigned_to(previous, entries),
        broken=broken,
        key=id_of(secret),
        mac="",
    )
    return replace(unsigned, mac=_mac(secret, namespace, unsigned))


def next_number(previous: Seal | None, entries: Sequence[SignedEntry]) -> int:
    """Return the number that the first entry should have; without a seal or signature before it, its own."""
    if previous is not None:
        return previous.last + 1
    return 1 if "mac" in entries[0].fields else max(entries[0].number, 1)


def unsigned_to(previous: Seal | None, entries: Iterable[SignedEntry]) -> int:
    """Return the last number before the first signed entry, if all before it are unsigned."""
    last = previous.unsigned if previous else 0
    if previous is not None and previous.unsigned != previous.last:
        return last
    for entry in entries:
        if "mac" in entry.fields:
            break
        last = max(entry.number, last)
    return last


def start(secret: Secret, chain: str | None) -> hmac.HMAC:
    """Continue a chain, or start one."""
    before = GENESIS if chain is None else bytes.fromhex(chain)
    return hmac.new(key_of(secret, "audit-chain"), before, "sha256")


def read_seal(stream_id: bytes, parts: Iterable[bytes]) -> Seal | None:
    """Parse the fields of a seal; None if they are malformed."""
    texts = [part.decode(errors="replace") for part in parts]
    if texts[::2] != [*_FIELDS, "mac"] or len(texts) != 2 * len(_FIELDS) + 2:
        return None
    fields = dict(zip(texts[::2], texts[1::2], strict=True))
    numbers = [fields[name] for name in ("first", "last", "unsigned")]
    if not all(map(_NUMBER.fullmatch, numbers)) or not _CODES.fullmatch(fields["chain"] + fields["mac"]):
        return None
    first, last, unsigned = map(int, numbers)
    text = {name: fields[name] for name in ("chain", "at", "broken", "key", "mac")}
    return Seal(id=stream_id, first=first, last=last, unsigned=unsigned, **text)


def _mac(secret: Secret, namespace: str, seal: Seal) -> str:
    parts = [namespace.encode(), seal.id, *(str(getattr(seal, name)).encode() for name in _FIELDS)]
    return hmac.digest(key_of(secret, "audit-seal"), framed(parts), "sha256").hex()
