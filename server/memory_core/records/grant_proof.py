"""What the server signs of a grant: the most that it may ever give.

The Functions may narrow a grant later, so its entry holds this proof beside the parts that are in force.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from memory_core.records.authority_codes import Authority, AuthorityCodes, IntegrityFailure


@dataclass(frozen=True, slots=True)
class GrantProof:
    """The most that a grant may give. `ends` is in microseconds; `tokens` are own ones and those passed on."""

    id: str
    by: str
    by_owner: str
    owner: str
    permission: str
    ends: float
    tokens: frozenset[str]

    def sign(self, integrity: AuthorityCodes, namespace: str, grantee: str) -> dict[str, str] | None:
        """Return the text and its code for the Functions; None without a key."""
        body = self.text()
        code = integrity.sign_authority(Authority.GRANT, namespace, grantee, body)
        return {"body": body, "code": code} if code else None

    def text(self) -> str:
        """Return it as JSON, which the Functions read too. An end of -1 is none."""
        ends = -1 if math.isinf(self.ends) else int(self.ends)
        fields = {"id": self.id, "by": self.by, "by_owner": self.by_owner, "owner": self.owner}
        return json.dumps({**fields, "permission": self.permission, "ends": ends, "tokens": sorted(self.tokens)})

    def covers(self, grant_id: str, entry: Mapping[str, Any]) -> bool:
        """Whether an entry of a grant gives no more."""
        named = (self.id, self.by, self.by_owner, self.owner, self.permission)
        parts = [{"tokens": entry["own"], "ends": entry["ends"]}, *dict(entry["via"]).values()]
        return named == (grant_id, *(entry[name] for name in ("by", "by_owner", "owner", "permission"))) and all(
            self.tokens.issuperset(part["tokens"]) and (part["ends"] <= self.ends or not part["tokens"])
            for part in parts
        )


@lru_cache(maxsize=512)
def _read(body: str) -> GrantProof:
    fields: dict[str, Any] = json.loads(body)
    ends = fields.pop("ends")
    return GrantProof(ends=math.inf if ends < 0 else ends, tokens=frozenset(fields.pop("tokens")), **fields)


def of_entry(grant_id: str, entry: Mapping[str, Any]) -> GrantProof:
    """Return the proof of what an existing entry gives."""
    via = list(dict(entry["via"]).values())
    tokens = frozenset([*entry["own"], *(token for part in via for token in part["tokens"])])
    ends = max([entry["ends"], *(part["ends"] for part in via)])
    named = {name: entry[name] for name in ("by", "by_owner", "owner", "permission")}
    return GrantProof(id=grant_id, ends=ends, tokens=tokens, **named)


def check(
    integrity: AuthorityCodes,
    namespace: str,
    grantee: str,
    grant_id: str,
    entry: Mapping[str, Any],
    *,
    log: bool = True,
) -> IntegrityFailure | None:
    """Check that the server signed what an entry gives to an agent. None if it did."""
    body, code = entry.get("proof"), entry.get("code")
    look = integrity.check_authority if log else integrity.inspect_authority
    failure = look(Authority.GRANT, namespace, grantee, code, body or "")
    if failure or not integrity.signs:
        return failure
    with suppress(KeyError, TypeError):
        if _read(body or "").covers(grant_id, entry):
            return None
    if log:
        integrity.note_authority(Authority.GRANT, namespace, f"{grantee} {grant_id}", IntegrityFailure.ALTERED)
    return IntegrityFailure.ALTERED
