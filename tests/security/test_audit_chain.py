"""Audit chain: verification detects any single change to sealed entries."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from support.audit_helpers import KEYRING, NAMESPACE, Trail, seal_over, sealed_trail, written

from memory_core.crypto.keyring import Keyring, Secret
from memory_core.crypto.signed_entry import SignedEntry
from memory_server.security.audit.seals import Seal, read_seal
from memory_server.security.audit.verifier import AuditCounts

CHANGES = 10_000
GOOD = sealed_trail(24, [1, 4, 2, 7], Random(1))
SEALED = GOOD.counters.sealed
OTHER_KEY = Keyring([Secret(bytes(range(100, 132)))])


def test_unchanged_trail_is_intact() -> None:
    report = GOOD.check()
    assert report.ok
    assert (report.entries, report.first, report.unsealed) == (24, 1, 24 - SEALED)
    assert report.head == f"{SEALED}:{GOOD.seals[-1].chain}"


def test_empty_trail_is_intact_unless_numbers_were_issued() -> None:
    assert Trail((), (), AuditCounts(0, 0)).check().ok
    assert {problem.kind for problem in Trail((), (), AuditCounts(3, 2)).check().problems} == {
        "tail cut",
        "seal removed",
    }


def in_hex(entry: SignedEntry) -> SignedEntry:
    """The entry as an earlier version would have signed it."""
    at = entry.parts.index(b"mac") + 1
    code = base64.urlsafe_b64decode(entry.parts[at] + b"=").hex().encode()
    return replace(entry, parts=(*entry.parts[:at], code, *entry.parts[at + 1 :]))


def test_trail_that_an_earlier_version_began_is_intact() -> None:
    entries = [in_hex(entry) if entry.number <= 9 else entry for entry in GOOD.entries]
    first = seal_over(entries[:14], None)
    seals = (first, seal_over(entries[14:], first))
    assert Trail(tuple(entries), seals, AuditCounts(24, 24)).check().ok
    forged = entries[3].parts[entries[3].parts.index(b"mac") + 1]
    entries[3] = replace(entries[3], parts=tuple(b"0" * 64 if part == forged else part for part in entries[3].parts))
    assert {problem.kind for problem in Trail(tuple(entries), (), AuditCounts(24, 0)).check().problems} == {"forged"}


def test_copy_with_the_signature_in_the_form_of_an_earlier_version_is_detected() -> None:
    copy = replace(in_hex(GOOD.entries[2]), id=b"1800000000000-0")
    assert "repeated" in {problem.kind for problem in GOOD.but([*GOOD.entries, copy]).check().problems}


def test_stored_signature_is_short_text() -> None:
    parts = GOOD.entries[0].parts
    code = parts[parts.index(b"mac") + 1]
    assert (len(code), code.isascii()) == (43, True)


def test_ten_thousand_single_changes_are_all_detected() -> None:
    random, missed = Random(2), Counter[str]()
    for _ in range(CHANGES):
        name, change = random.choice(list(SINGLE_CHANGES.items()))
        changed = change(GOOD, random)
        if (changed.entries, changed.seals) != (GOOD.entries, GOOD.seals) and changed.check().ok:
            missed[name] += 1
    assert not missed


def test_every_kind_of_change_can_be_applied_to_an_intact_trail() -> None:
    random = Random(3)
    for name, change in SINGLE_CHANGES.items():
        assert any(change(GOOD, random) != GOOD for _ in range(20)), name


def with_byte_changed(value: bytes, random: Random) -> bytes:
    """Change, add or remove one byte."""
    at, byte = random.randrange(len(value) + 1), bytes([random.randrange(32, 127)])
    kept = value[at + 1 :] if random.random() < 0.5 else value[at:]
    return value[:at] + random.choice([byte, b""]) + kept


def field_changed(trail: Trail, random: Random) -> Trail:
    at = random.randrange(SEALED)
    parts = list(trail.entries[at].parts)
    place = random.randrange(len(parts))
    parts[place] = with_byte_changed(parts[place], random)
    return with_entry(trail, at, tuple(parts))


def field_added(trail: Trail, random: Random) -> Trail:
    at = random.randrange(SEALED)
    parts = list(trail.entries[at].parts)
    place = 2 * random.randrange(len(parts) // 2 + 1)
    parts[place:place] = [random.choice([b"who", b"outcome", b"more"]), b"x"]
    return with_entry(trail, at, tuple(parts))


def field_removed(trail: Trail, random: Random) -> Trail:
    at = random.randrange(SEALED)
    parts = list(trail.entries[at].parts)
    place = 2 * random.randrange(len(parts) // 2)
    del parts[place : place + 2]
    return with_entry(trail, at, tuple(parts))


def entry_moved(trail: Trail, random: Random) -> Trail:
    at = random.randrange(SEALED)
    moved = replace(trail.entries[at], id=f"{random.randrange(10**13)}-7".encode())
    return trail.but([*trail.entries[:at], moved, *trail.entries[at + 1 :]])


def entry_removed(trail: Trail, random: Random) -> Trail:
    at = random.randrange(SEALED)
    return trail.but([*trail.entries[:at], *trail.entries[at + 1 :]])


def entries_swapped(trail: Trail, random: Random) -> Trail:
    """Swap two entries, with or without their ids."""
    one, two = sorted(random.sample(range(SEALED), 2))
    entries = list(trail.entries)
    if random.random() < 0.5:
        entries[one], entries[two] = entries[two], entries[one]
    else:
        entries[one] = replace(trail.entries[two], id=trail.entries[one].id)
        entries[two] = replace(trail.entries[one], id=trail.entries[two].id)
    return trail.but(entries)


def entry_inserted(trail: Trail, random: Random) -> Trail:
    """Insert a copy, or an entry forged under another key, among the sealed ones."""
    at = random.randrange(SEALED)
    forged = written(at + 1, random, OTHER_KEY) if random.random() < 0.5 else random.choice(trail.entries)
    milliseconds, _, number = trail.entries[at].id.partition(b"-")
    new = replace(forged, id=milliseconds + b"-" + str(int(number) * 10 + 5).encode())
    return trail.but([*trail.entries[:at], new, *trail.entries[at:]])


def tail_removed(trail: Trail, random: Random) -> Trail:
    """Remove all entries from one on, with their seals."""
    kept = random.randrange(SEALED)
    entries = trail.entries[:kept]
    last = entries[-1].position if entries else (0, 0)
    return trail.but(entries, [seal for seal in trail.seals if seal.position <= last])


def start_removed(trail: Trail, random: Random) -> Trail:
    """Remove the entries of the first seals, as retention would."""
    at = random.randrange(len(trail.seals) - 1)
    base = trail.seals[at]
    return trail.but([entry for entry in trail.entries if entry.position > base.position], trail.seals[at:])


def seal_changed(trail: Trail, random: Random) -> Trail:
    at = random.randrange(len(trail.seals))
    parts = [part.encode() for part in trail.seals[at].fields()]
    place = 2 * random.randrange(len(parts) // 2) + 1
    parts[place] = with_byte_changed(parts[place], random)
    read = read_seal(trail.seals[at].id, parts)
    return trail.but(seals=[*trail.seals[:at], *([read] if read else []), *trail.seals[at + 1 :]])


def seal_moved(trail: Trail, random: Random) -> Trail:
    at = random.randrange(len(trail.seals))
    moved = replace(trail.seals[at], id=random.choice(trail.entries).id)
    return trail.but(seals=[*trail.seals[:at], moved, *trail.seals[at + 1 :]])


def seal_removed(trail: Trail, random: Random) -> Trail:
    at = random.randrange(len(trail.seals))
    return trail.but(seals=[*trail.seals[:at], *trail.seals[at + 1 :]])


def seals_swapped(trail: Trail, random: Random) -> Trail:
    one, two = random.sample(range(len(trail.seals)), 2)
    seals = list(trail.seals)
    seals[one], seals[two] = seals[two], seals[one]
    return trail.but(seals=seals)


def seal_inserted(trail: Trail, random: Random) -> Trail:
    """Insert a copy of a seal, or a seal under another key."""
    at = random.randrange(len(trail.seals))
    forged = seal_over(trail.entries[:3], None, OTHER_KEY)
    return trail.but(seals=[*trail.seals[:at], random.choice([*trail.seals, forged]), *trail.seals[at:]])


def with_entry(trail: Trail, at: int, parts: tuple[bytes, ...]) -> Trail:
    changed = SignedEntry(trail.entries[at].id, parts)
    return trail.but([*trail.entries[:at], changed, *trail.entries[at + 1 :]])


SINGLE_CHANGES: dict[str, Callable[[Trail, Random], Trail]] = {
    change.__name__: change
    for change in (
        field_changed,
        field_added,
        field_removed,
        entry_moved,
        entry_removed,
        entries_swapped,
        entry_inserted,
        tail_removed,
        start_removed,
        seal_changed,
        seal_moved,
        seal_removed,
        seals_swapped,
        seal_inserted,
    )
}


def test_forged_or_missing_unsealed_entries_are_detected() -> None:
    tail = GOOD.entries[SEALED:]
    assert len(tail) >= 3
    forged = written(SEALED + 2, Random(5), OTHER_KEY)
    kinds: dict[str, Trail] = {
        "unknown key": GOOD.but([*GOOD.entries[: SEALED + 1], replace(forged, id=tail[1].id), *tail[2:]]),
        "forged": GOOD.but([*GOOD.entries[:-1], SignedEntry(tail[-1].id, with_other_agent(tail[-1]))]),
        "unsigned": GOOD.but([*GOOD.entries[:-1], SignedEntry(tail[-1].id, tail[-1].parts[:-2])]),
        "removed": GOOD.but([*GOOD.entries[:SEALED], *tail[1:]]),
        "tail cut": GOOD.but(GOOD.entries[:-1]),
        "repeated": GOOD.but([*GOOD.entries, replace(GOOD.entries[2], id=b"1800000000000-0")]),
    }
    for kind, changed in kinds.items():
        assert kind in {problem.kind for problem in changed.check().problems}


def with_other_agent(entry: SignedEntry) -> tuple[bytes, ...]:
    """Return its fields with another agent's name."""
    return tuple(b"mallory" if part in {b"alice", b"bob"} else part for part in entry.parts)


def test_trail_of_another_namespace_is_refused() -> None:
    assert not GOOD.check(namespace="elsewhere").ok


def test_full_rollback_is_detected_only_by_a_head_kept_elsewhere() -> None:
    head = GOOD.check().head
    before = sealed_trail(24, [1, 4, 2, 7], Random(1))
    older = Trail(before.entries[:7], before.seals[:3], AuditCounts(7, 7))
    assert older.check().ok
    assert [problem.kind for problem in older.check(expect=head).problems] == ["head"]
    other = sealed_trail(24, [1, 4, 2, 7], Random(8))
    assert [problem.kind for problem in other.check(expect=head).problems] == ["head"]
    assert GOOD.check(expect=head).ok
    assert GOOD.check(expect=GOOD.seals[1].head).ok


def test_genuine_start_of_a_rolled_back_trail_does_not_fit_the_rest() -> None:
    """After a rollback, a server seals other entries under the same numbers; an attacker splices those in front."""
    other = sealed_trail(24, [1, 4, 2, 7], Random(8))
    assert other.check().ok
    spliced = GOOD.but([*other.entries[:5], *GOOD.entries[5:]], [*other.seals[:2], *GOOD.seals[2:]])
    assert [problem.number for problem in spliced.check().problems] == [GOOD.seals[2].first]


def test_sealers_findings_stay_reported_and_the_chain_continues() -> None:
    random = Random(4)
    entries = [written(number, random) for number in (1, 2, 4, 5)]
    first = seal_over(entries[:3], None)
    assert first.broken == "3:removed"
    second = seal_over(entries[3:], first)
    assert second.broken == ""
    report = Trail(tuple(entries), (first, second), AuditCounts(5, 5)).check()
    assert {(problem.number, problem.kind) for problem in report.problems} == {(3, "recorded: removed"), (3, "removed")}


def test_unkeyed_entries_are_accepted_only_before_the_first_keyed_one() -> None:
    random, bare = Random(6), Keyring()
    entries = [written(number, random, bare) for number in (1, 2, 3)]
    entries += [written(number, random) for number in (4, 5)]
    first = seal_over(entries[:2], None)
    second = seal_over(entries[2:], first)
    trail = Trail(tuple(entries), (first, second), AuditCounts(5, 5))
    report = trail.check()
    assert report.ok
    assert (report.unsigned, second.unsigned, second.broken) == (3, 3, "")
    late = seal_over([written(6, random, bare)], second)
    assert late.broken == "6:unsigned"
    stripped = [SignedEntry(entry.id, entry.parts[: entry.parts.index(b"key")]) for entry in entries[3:4]]
    assert not trail.but([*entries[:3], *stripped, entries[4]]).check().ok


def test_key_change_leaves_the_trail_intact() -> None:
    random, new = Random(7), Secret(bytes(range(200, 232)))
    both = Keyring([new, *KEYRING.masters])
    entries = [written(1, random), written(2, random), written(3, random, both)]
    first = seal_over(entries[:1], None)
    second = seal_over(entries[1:], first, both)
    trail = Trail(tuple(entries), (first, second), AuditCounts(3, 3))
    assert trail.check(both).ok
    assert {problem.kind for problem in trail.check().problems} == {"seal unknown key", "unknown key"}


@pytest.mark.parametrize("fields", [[], [b"first", b"1"], [b"first", b"x"] * 8, [b"\xff"] * 16])
def test_malformed_seal_is_not_accepted(fields: list[bytes]) -> None:
    assert read_seal(b"1-1", fields) is None


def test_without_key_only_numbers_are_checked_and_reported() -> None:
    bare = sealed_trail(5, [9], Random(9), Keyring())
    assert not bare.seals
    report = bare.check(Keyring())
    assert report.ok
    assert not report.keyed
    assert not bare.but([*bare.entries[:2], *bare.entries[3:]]).check(Keyring()).ok
    assert isinstance(GOOD.seals[0], Seal)
    assert report.namespace == NAMESPACE
