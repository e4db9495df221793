"""Who a principal is follows from what lies in Redis at one moment, by Redis's clock."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from memory_core.records.codec import pack
from memory_core.records.grant import principal_of
from memory_core.records.memory import MemoryType, Visibility
from memory_core.records.names import SEPARATOR
from memory_core.records.scope import Grant, Part, Principal, record_tokens

NOW = 1_000.5
"""Seconds."""


def entry(**changed: Any) -> dict[str, Any]:
    """A grant of bob's to the present owner id of ann, in force."""
    own = {
        "owner": "o2",
        "by": "bob",
        "permission": "read",
        "at": 900e6,
        "ends": math.inf,
        "own": ["t:o9:x"],
        "via": {},
    }
    return own | changed


def principal(*entries: dict[str, Any] | bytes, owner: bytes | None = b"o2", **more: Any) -> Principal:
    """What Redis's answers make of them."""
    granted = {f"g{n}".encode(): one if isinstance(one, bytes) else pack(one) for n, one in enumerate(entries)}
    rows = [
        [owner, None if owner is None else f"o1{SEPARATOR}o2".encode()],
        granted,
        more.get("tombstones", set[bytes]()),
        more.get("quarantined", dict[bytes, bytes]()),
        (int(NOW), int(NOW % 1 * 1_000_000)),
    ]
    return principal_of("team", "ann", False, rows)


def test_a_grant_in_force_gives_its_tokens_since_when_it_was_made() -> None:
    (grant,) = principal(entry()).grants
    assert grant == Grant("g0", "bob", False, (Part(("t:o9:x",), 900.0),))
    assert principal(entry(permission="write")).grants[0].may_write


@pytest.mark.parametrize("ends", [0, 1, (NOW - 0.1) * 1e6, NOW * 1e6])
def test_a_grant_gives_nothing_from_its_end_on(ends: float) -> None:
    assert principal(entry(ends=ends)).grants == ()
    assert len(principal(entry(ends=NOW * 1e6 + 1)).grants) == 1


def test_what_is_passed_on_ends_by_itself() -> None:
    via = {
        "parent": {"tokens": ["i:m"], "at": 950e6, "ends": 999e6},
        "other": {"tokens": ["i:n"], "at": 1e6, "ends": 2e9},
    }
    (grant,) = principal(entry(via=via)).grants
    assert grant.parts == (Part(("t:o9:x",), 900.0), Part(("i:n",), 1.0))
    (rest,) = principal(entry(via=via, ends=1.0)).grants
    assert rest.parts == (Part(("i:n",), 1.0),)
    assert rest.tokens == {"i:n"}


@pytest.mark.parametrize("bad", [entry(owner="o1"), entry(owner="o3"), b"\xc1", entry(own=[])])
def test_a_grant_to_an_earlier_owner_id_of_nothing_or_not_to_be_read_counts_for_nothing(
    bad: dict[str, Any] | bytes,
) -> None:
    assert principal(bad).grants == ()
    assert [grant.id for grant in principal(bad, entry()).grants] == ["g1"]


def test_who_has_no_owner_id_has_no_grants_and_owns_nothing() -> None:
    nobody = principal(entry(), owner=None)
    assert (nobody.owner, nobody.owners, nobody.grants, nobody.tokens) == (None, (), (), ("pub",))


def test_deleted_owner_ids_are_hidden_whatever_shows_them() -> None:
    ann = principal(entry(), tombstones={b"o9"})
    assert ann.hidden == {"o:o9"}
    assert not ann.may_read(frozenset({"o:o9", "t:o9:x"}))
    assert ann.may_read(frozenset({"o:o8", "t:o9:x"}))
    assert not ann.may_read(frozenset({"o:o8"}))


def test_agents_under_quarantine_are_mistrusted_by_others_alone() -> None:
    ann = principal(quarantined={b"eve": b"7.5", b"ann": b"3"})
    assert ann.quarantined == (("ann", 3.0), ("eve", 7.5))
    assert ann.mistrusted == {"eve": 7.5}


def test_who_may_write_is_said_by_grants_to_write_that_meet_the_scope() -> None:
    ann = principal(entry(), entry(permission="write", own=["i:m"]), entry(permission="write", own=["i:n"]))
    assert [grant.id for grant in ann.grants_to_write(frozenset({"i:m", "t:o9:x"}))] == ["g1"]
    assert ann.grants_to_write(frozenset({"t:o9:x"})) == ()


def test_its_own_are_those_of_all_its_owner_ids() -> None:
    ann = principal()
    assert [ann.owns(owner) for owner in ("o1", "o2", "o3")] == [True, True, False]
    assert ann.tokens == ("pub", "o:o1", "o:o2")
    assert replace(ann, owners=()).tokens == ("pub",)


def test_a_record_carries_the_tokens_of_all_that_it_may_be_granted_by() -> None:
    said: dict[str, Any] = {
        "memory_id": "m",
        "owner": "o",
        "memory_type": MemoryType.CODE,
        "visibility": Visibility.PRIVATE,
        "tags": ["a", "b"],
        "context": "c",
    }

    def tokens(**other: Any) -> frozenset[str]:
        return record_tokens(**{**said, **other})

    private = tokens()
    assert {token[0] for token in private} == set("oityc")
    assert len(private) == 6
    assert tokens(visibility=Visibility.PUBLIC) - private == {"pub"}
    assert tokens(visibility=Visibility.SHARED) == private
    assert private - tokens(context=None) == {token for token in private if token.startswith("c:")}
    assert tokens(sensitive=True) == {"o:o", "i:m"}
