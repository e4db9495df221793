"""Principals: ownership, grants and quarantine as read from one Redis snapshot, by Redis time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from memory_core.crypto.integrity import Integrity
from memory_core.crypto.keyring import Keyring
from memory_core.records.codec import pack
from memory_core.records.grant import principal_of
from memory_core.records.memory import MemoryType, Visibility
from memory_core.records.names import SEPARATOR
from memory_core.records.scope import Grant, Part, Principal, record_tokens

NOW = 1_000.5
"""Seconds."""
RESULT: dict[str, Any] = {
    "memory_id": "m1",
    "owner": "o9",
    "memory_type": MemoryType.TASK,
    "visibility": Visibility.SHARED,
    "tags": (),
    "context": None,
}


def entry(**changed: Any) -> dict[str, Any]:
    """An active grant from bob to ann's current owner id."""
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
    """Build a principal from Redis replies."""
    granted = {f"g{n}".encode(): one if isinstance(one, bytes) else pack(one) for n, one in enumerate(entries)}
    rows = [
        [owner, None if owner is None else f"o1{SEPARATOR}o2".encode(), None, b"o0", None, None],
        granted,
        more.get("tombstones", set[bytes]()),
        more.get("quarantined", dict[bytes, bytes]()),
        (int(NOW), int(NOW % 1 * 1_000_000)),
    ]
    return principal_of("team", "ann", False, rows, Integrity(Keyring()))


def test_active_grant_gives_its_tokens_from_its_creation_time() -> None:
    (grant,) = principal(entry()).grants
    assert grant == Grant("g0", "bob", False, (Part(("t:o9:x",), 900.0),))
    assert principal(entry(permission="write")).grants[0].may_write


@pytest.mark.parametrize("ends", [0, 1, (NOW - 0.1) * 1e6, NOW * 1e6])
def test_ended_grant_gives_no_tokens(ends: float) -> None:
    assert principal(entry(ends=ends)).grants == ()
    assert len(principal(entry(ends=NOW * 1e6 + 1)).grants) == 1


def test_reshared_part_has_its_own_end() -> None:
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
def test_stale_empty_or_unreadable_grant_is_ignored(
    bad: dict[str, Any] | bytes,
) -> None:
    assert principal(bad).grants == ()
    assert [grant.id for grant in principal(bad, entry()).grants] == ["g1"]


def test_agent_without_owner_id_owns_nothing_and_has_no_grants() -> None:
    unowned = principal(entry(), owner=None)
    assert (unowned.owner, unowned.owners, unowned.grants, unowned.tokens) == (None, (), (), ("pub",))


def test_deleted_owner_ids_are_always_hidden() -> None:
    ann = principal(entry(), tombstones={b"o9"})
    assert ann.hidden == {"o:o9"}
    assert not ann.may_read(frozenset({"o:o9", "t:o9:x"}))
    assert ann.may_read(frozenset({"o:o8", "t:o9:x"}))
    assert not ann.may_read(frozenset({"o:o8"}))


def test_quarantined_agent_is_mistrusted_only_by_others() -> None:
    ann = principal(quarantined={b"eve": b"7.5", b"ann": b"3"})
    assert ann.quarantined == (("ann", 3.0), ("eve", 7.5))
    assert ann.mistrusted == {"eve": 7.5}


def test_write_permission_needs_a_write_grant_matching_the_scope() -> None:
    ann = principal(entry(), entry(permission="write", own=["i:m"]), entry(permission="write", own=["i:n"]))
    assert [grant.id for grant in ann.grants_to_write(frozenset({"i:m", "t:o9:x"}))] == ["g1"]
    assert ann.grants_to_write(frozenset({"t:o9:x"})) == ()


def test_agent_owns_memories_of_all_its_owner_ids() -> None:
    ann = principal()
    assert [ann.owns(owner) for owner in ("o1", "o2", "o3")] == [True, True, False]
    assert ann.tokens == ("pub", "o:o1", "o:o2", "r:o2")
    assert replace(ann, owner=None, owners=()).tokens == ("pub",)


def test_memory_written_for_an_owner_id_is_readable_under_it_alone() -> None:
    scope = record_tokens(**RESULT, readers=["o2"])
    assert principal().may_read(scope)
    assert not replace(principal(), owner="o1").may_read(scope)  # o2 is one that it took over
    assert not principal().of_public().may_read(scope)
    assert not principal().grants_to_write(scope)


def test_private_and_sensitive_memories_have_no_readers() -> None:
    changes: list[dict[str, Any]] = [{"visibility": Visibility.PRIVATE}, {"sensitive": True}]
    for changed in changes:
        assert "r:o2" not in record_tokens(**(RESULT | changed), readers=["o2"])


def test_record_carries_every_token_it_can_be_granted_by() -> None:
    fields: dict[str, Any] = {
        "memory_id": "m",
        "owner": "o",
        "memory_type": MemoryType.CODE,
        "visibility": Visibility.PRIVATE,
        "tags": ["a", "b"],
        "context": "c",
    }

    def tokens(**other: Any) -> frozenset[str]:
        return record_tokens(**{**fields, **other})

    private = tokens()
    assert {token[0] for token in private} == set("oityc")
    assert len(private) == 6
    assert tokens(visibility=Visibility.PUBLIC) - private == {"pub"}
    assert tokens(visibility=Visibility.SHARED) == private
    assert private - tokens(context=None) == {token for token in private if token.startswith("c:")}
    assert tokens(sensitive=True) == {"o:o", "i:m"}
