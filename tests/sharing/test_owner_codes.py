"""Codes of owner ids and offers: each is valid for one name, one namespace and one holder of the name."""

from __future__ import annotations

import math

import pytest

from memory_core.crypto.integrity import Integrity
from memory_core.crypto.keyring import Keyring, Secret
from memory_core.errors import Tampered
from memory_core.records import offer_proof, owners
from memory_core.records.authority_codes import IntegrityFailure
from memory_core.records.codec import pack

INTEGRITY = Integrity(Keyring([Secret(bytes(range(32)))]))
OFFER = {
    "from": b"ann", "to": b"bob", "from_owner": b"o1", "to_owner": b"o2", "kind": b"t", "permission": b"read",
    "note": b"", "values": pack(["gold"]), "until": b"2000.000000",
}  # fmt: skip


def row(*, owner: str = "o1", since: str = "5.000000", kept: str = "k1") -> list[bytes | None]:
    """Fields of a name that holds the owner id o1 since 5.0, and whose earlier holder kept k1."""
    of = owners.join_proofs(owners.proofs(INTEGRITY, "team", "ann", ["o1"], "5.000000") or {})
    left = owners.join_proofs(owners.kept_proofs(INTEGRITY, "team", "ann", ["k1"]) or {})
    return [value.encode() for value in (owner, owner, of, kept, left, since)]


def read(fields: list[bytes | None], namespace: str = "team", agent: str = "ann") -> owners.Owners:
    return owners.read(INTEGRITY, namespace, agent, fields)


def test_signed_owner_ids_and_kept_ones_are_read() -> None:
    assert read(row()) == owners.Owners("o1", ("o1",), ("k1",), "5.000000")


@pytest.mark.parametrize("change", [{"owner": "o2"}, {"since": "4.000000"}, {"since": ""}])
def test_code_of_an_owner_id_is_bound_to_its_place(change: dict[str, str]) -> None:
    with pytest.raises(Tampered):
        read(row(**change))
    for where in (("team", "bob"), ("other", "ann")):
        with pytest.raises(Tampered):
            read(row(), *where)


def test_kept_code_gives_no_owner_id_and_an_owner_code_keeps_none() -> None:
    _, _, of, _, left, since = row()
    assert read([None, b"k1", left, b"o1", of, since]) == owners.Owners(None, (), (), "5.000000")
    assert read(row(kept="k2")).kept == ()


@pytest.mark.parametrize(
    "change",
    [
        {"from": b"eve"}, {"to": b"eve"}, {"from_owner": b"o3"}, {"to_owner": b"o3"}, {"kind": b"o"},
        {"permission": b"write"}, {"note": b"Accept this."}, {"values": pack(["silver"])}, {"until": b"inf"},
    ],
)  # fmt: skip
def test_changed_offer_is_altered(change: dict[str, bytes]) -> None:
    signed = {**OFFER, "mac": offer_proof.sign_row(INTEGRITY, "team", "f1", OFFER).encode()}
    assert offer_proof.inspect(INTEGRITY, "team", "f1", signed) is None
    assert offer_proof.inspect(INTEGRITY, "team", "f1", signed | {"until": b"1000.000000"}) is None
    altered = IntegrityFailure.ALTERED
    assert offer_proof.inspect(INTEGRITY, "team", "f1", signed | change) is altered
    assert offer_proof.inspect(INTEGRITY, "team", "f2", signed) is altered
    assert offer_proof.inspect(INTEGRITY, "other", "f1", signed) is altered
    assert offer_proof.inspect(INTEGRITY, "team", "f1", OFFER) is IntegrityFailure.UNSIGNED


def test_without_a_key_everything_is_accepted() -> None:
    keyless = Integrity(Keyring())
    assert owners.read(keyless, "team", "ann", [b"o1", b"o1", None, b"k1", None, None]).kept == ("k1",)
    assert owners.proof(keyless, "team", "ann", "o1", "") is None
    assert offer_proof.sign_row(keyless, "team", "f1", OFFER | {"until": str(math.inf).encode()}) == ""
    assert offer_proof.inspect(keyless, "team", "f1", OFFER) is None
