"""What the server signs of the record of an offer: who asks whom for what, under which id, and its latest end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from memory_core.records.authority_codes import Authority, AuthorityCodes, IntegrityFailure
from memory_core.records.codec import unpack
from memory_core.records.names import SEPARATOR
from memory_core.records.times import to_redis

CLOCK_SECONDS = 5
"""How far this process's clock may be behind that of Redis, which sets the end of a grant or an offer."""
_FIELDS = ("from", "to", "from_owner", "to_owner", "kind", "permission", "note")


def sign(integrity: AuthorityCodes, namespace: str, offer_id: str, fields: Mapping[str, str], ends: float) -> str:
    """Return the latest end (epoch seconds) and the code of an offer; empty without a key.

    `fields` are those of its record, as text: `shown` are the values that it shows.
    """
    latest = to_redis(ends)
    code = integrity.sign_authority(Authority.OFFER, namespace, offer_id, latest, *_signed(fields))
    return f"{latest} {code}" if code else ""


def code_of(row: Mapping[str, bytes]) -> str:
    """Return the code in the record of an offer."""
    return row.get("mac", b"").decode(errors="replace").partition(" ")[2]


def sign_row(integrity: AuthorityCodes, namespace: str, offer_id: str, row: Mapping[str, bytes]) -> str:
    """Sign the record of an offer that exists already."""
    return sign(integrity, namespace, offer_id, _text(row), float(row["until"]))


def inspect(
    integrity: AuthorityCodes, namespace: str, offer_id: str, row: Mapping[str, bytes]
) -> IntegrityFailure | None:
    """Check the record of an offer, without a log entry. None if the server wrote it."""
    latest = row.get("mac", b"").decode(errors="replace").partition(" ")[0]
    signed = latest, *_signed(_text(row))
    failure = integrity.inspect_authority(Authority.OFFER, namespace, offer_id, code_of(row), *signed)
    if failure or not integrity.signs:
        return failure
    return None if float(row["until"]) <= float(latest or math.nan) else IntegrityFailure.ALTERED


def is_genuine(integrity: AuthorityCodes, namespace: str, offer_id: str, row: Mapping[str, bytes]) -> bool:
    """Whether the server wrote the record of an offer; logs a failure."""
    failure = inspect(integrity, namespace, offer_id, row)
    if failure:
        integrity.note_authority(Authority.OFFER, namespace, offer_id, failure)
    return failure is None


def shown(values: Sequence[object]) -> str:
    """Join the values that an offer shows."""
    return SEPARATOR.join(map(str, values))


def _signed(fields: Mapping[str, str]) -> tuple[str, ...]:
    return (*(fields[name] for name in _FIELDS), fields["shown"])


def _text(row: Mapping[str, bytes]) -> dict[str, str]:
    text = {name: row.get(name, b"").decode(errors="replace") for name in _FIELDS}
    return text | {"shown": shown(unpack(row["values"]))}
