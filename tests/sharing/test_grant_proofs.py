"""Proofs of grants: an entry may give less than the server signed, never more or to anyone else."""

from __future__ import annotations

import math
from typing import Any

import pytest

from memory_core.crypto.integrity import Integrity
from memory_core.crypto.keyring import Keyring, Secret
from memory_core.records import grant_proof
from memory_core.records.authority_codes import IntegrityFailure

INTEGRITY = Integrity(Keyring([Secret(bytes(range(32)))]))
ENTRY: dict[str, Any] = {
    "owner": "o2",
    "by": "bob",
    "by_owner": "o9",
    "permission": "read",
    "at": 900e6,
    "ends": 2000e6,
    "own": ["t:o9:x", "t:o9:y"],
    "via": {"parent": {"tokens": ["t:o7:x"], "at": 950e6, "ends": 1500e6}},
}


def signed(entry: dict[str, Any] = ENTRY, integrity: Integrity = INTEGRITY) -> dict[str, Any]:
    """An entry with its proof."""
    proof = grant_proof.of_entry("g1", entry).sign(integrity, "team", "ann")
    return entry if proof is None else {**entry, "proof": proof["body"], "code": proof["code"]}


def check(entry: dict[str, Any], namespace: str = "team", grantee: str = "ann", grant: str = "g1") -> object:
    """Why an entry fails its check; None if it does not."""
    return grant_proof.check(INTEGRITY, namespace, grantee, grant, entry)


@pytest.mark.parametrize(
    "narrowed",
    [
        {},
        {"at": 1.0},
        {"own": ["t:o9:y"]},
        {"own": []},
        {"via": {}},
        {"ends": 1000e6},
        {"via": {"parent": {"tokens": ["t:o7:x"], "at": 1.0, "ends": 1.0}}},
    ],
)
def test_narrowed_entry_is_genuine(narrowed: dict[str, Any]) -> None:
    assert check(signed() | narrowed) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"owner": "o3"},
        {"by": "carol"},
        {"by_owner": "o8"},
        {"permission": "write"},
        {"ends": 2001e6},
        {"ends": math.inf},
        {"own": ["t:o9:x", "t:o9:z"]},
        {"via": {"parent": {"tokens": ["i:m"], "at": 1.0, "ends": 1.0}}},
        {"via": {"parent": {"tokens": ["t:o7:x"], "at": 1.0, "ends": math.inf}}},
        {"via": 7},
        {"own": None},
        {"code": "0:0"},
        {"proof": "{}"},
    ],
)
def test_entry_that_gives_more_than_was_signed_is_altered(changed: dict[str, Any]) -> None:
    assert check(signed() | changed) in {IntegrityFailure.ALTERED, IntegrityFailure.UNKNOWN_KEY}


@pytest.mark.parametrize("where", [{"namespace": "other"}, {"grantee": "eve"}, {"grant": "g2"}])
def test_proof_is_bound_to_its_place(where: dict[str, str]) -> None:
    assert check(signed(), **where) is IntegrityFailure.ALTERED


def test_endless_grant_may_end_later_or_never() -> None:
    endless = signed(ENTRY | {"ends": math.inf})
    assert check(endless) is None
    assert check(endless | {"ends": 1.0}) is None


def test_without_a_key_every_entry_is_accepted() -> None:
    keyless = Integrity(Keyring())
    assert signed(ENTRY, keyless) is ENTRY
    assert grant_proof.check(keyless, "team", "ann", "g1", ENTRY) is None
    assert check(ENTRY) is IntegrityFailure.UNSIGNED
