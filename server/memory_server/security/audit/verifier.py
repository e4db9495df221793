"""Checks audit entries and seals in order, from Redis or a file. Needs no connection."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from memory_core.crypto.keyring import Keyring
from memory_core.crypto.signed_entry import TRIM, SignedEntry
from memory_core.errors import KeyMissing
from memory_server.contract.untrusted_text import counted
from memory_server.security.audit.seals import Seal, start

MOST_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """A problem, and the number of the first entry that it concerns."""

    number: int
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class AuditCounts:
    """The last number given to an entry and the last one sealed, as counted by Redis."""

    given: int
    sealed: int


@dataclass(slots=True)
class AuditReport:
    """The result of a check."""

    namespace: str
    keyed: bool
    entries: int = 0
    first: int = 0
    sealed_to: int = 0
    unsealed: int = 0
    unsigned: int = 0
    head: str = ""
    number_of_problems: int = 0
    problems: list[AuditFinding] = field(default_factory=list[AuditFinding])

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.number_of_problems

    def add(self, number: int, kind: str, detail: str) -> None:
        """Add a problem; beyond the first hundred, only count it."""
        self.number_of_problems += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(AuditFinding(number, kind, detail))


def verify(
    namespace: str,
    entries: Iterable[SignedEntry],
    seals: Sequence[Seal | None],
    counters: AuditCounts,
    keyring: Keyring,
    expect: str | None = None,
) -> AuditReport:
    """Check a whole audit. An unreadable seal is None. `expect` is a head that was stored elsewhere."""
    check = Check(namespace, seals, counters, keyring)
    for entry in entries:
        check.feed(entry)
    return check.finish(expect)


class Check:
    """A running check: seals are known at the start, entries are fed in order."""

    def __init__(self, namespace: str, seals: Sequence[Seal | None], counters: AuditCounts, keyring: Keyring) -> None:
        self.report = AuditReport(namespace, keyed=keyring.signer is not None)
        self._namespace = namespace
        self._keyring = keyring
        self._counters = counters
        self._seals = [seal for seal in seals if seal is not None]
        self._next = 0
        self._chain: hmac.HMAC | None = None
        self._expected = 1
        self._last = (-1, -1)
        self._seen: set[bytes] = set()
        self._signed = False
        self._trimmed = 0
        self._problems_before = 0
        for _ in range(len(seals) - len(self._seals)):
            self.report.add(0, "seal altered", "a seal cannot be read")
        self._check_seals()

    def feed(self, entry: SignedEntry) -> None:
        """Check the next entry."""
        if not self.report.entries:
            self._begin(entry)
        self.report.entries += 1
        while self._seal and entry.position > self._seal.position:
            self._close()
        self._check_place(entry)
        self._check_signature(entry)
        if self._chain is not None:
            self._chain.update(entry.framed)
        if self._seal is None:
            self.report.unsealed += 1
        elif entry.id == self._seal.id:
            self._close()

    def finish(self, expect: str | None = None) -> AuditReport:
        """Return the report on all entries."""
        while self._seal:
            self._close()
        report, given, sealed = self.report, self._counters.given, self._counters.sealed
        last = self._seals[-1] if self._seals else None
        report.sealed_to, report.head = (last.last, last.head) if last else (0, "")
        report.unsigned = max(report.unsigned, last.unsigned if last else 0)
        if report.first and report.first != self._trimmed + 1:
            report.add(report.first, "removed", f"entries begin at {report.first} instead of {self._trimmed + 1}")
        if self._expected <= given:
            report.add(self._expected, "tail cut", counted(given, "number was given", "numbers were given"))
        if report.sealed_to < sealed:
            report.add(report.sealed_to + 1, "seal removed", f"there were seals up to {sealed}")
        if expect is not None:
            number = int(expect.partition(":")[0])
            seal = next((seal for seal in self._seals if seal.last == number), None)
            if seal is None:
                report.add(number, "head", "no seal ends there: it was removed, or deleted by age")
            elif seal.head != expect:
                report.add(number, "head", "the seal that ends there has a different chain")
        report.problems.sort(key=lambda problem: problem.number)
        return report

    @property
    def _seal(self) -> Seal | None:
        """The seal over the next entries; None in the unsealed tail."""
        return self._seals[self._next] if self._next < len(self._seals) else None

    def _check_seals(self) -> None:
        """Check the seals' codes, their order and the problems that they record."""
        before: Seal | None = None
        for seal in self._seals:
            try:
                genuine = seal.is_genuine(self._keyring, self._namespace)
            except KeyMissing:
                self.report.add(seal.first, "seal unknown key", f"the seal names the key {seal.key[:16]!a}")
            else:
                if not genuine:
                    self.report.add(seal.first, "seal altered", f"the seal over {seal.first} to {seal.last}")
            if before and (seal.first != before.last + 1 or seal.position <= before.position):
                self.report.add(before.last + 1, "seal removed", f"the next seal begins at {seal.first}")
            if seal.broken:
                number, _, kind = seal.broken.partition(":")
                where = int(number) if number.isdigit() else seal.first
                self.report.add(where, f"recorded: {kind[:40]}", f"the sealer found it at {seal.at[:40]}")
            before = seal

    def _begin(self, entry: SignedEntry) -> None:
        """Find where the entries begin: at the first one, or after the seal up to which they were trimmed."""
        self.report.first = self._expected = max(entry.number, 1)
        base = self._seal
        if base and entry.position > base.position:
            self._next = 1
            if base.last + 1 != entry.number:
                self.report.add(base.last + 1, "removed", f"after the seal over {base.last} comes {entry.number}")
        elif base and base.first != entry.number:
            self.report.add(1, "removed", f"the first entry is {entry.number}, the first seal begins at {base.first}")
        self._continue(base.chain if self._next and base else None)

    def _check_place(self, entry: SignedEntry) -> None:
        number, expected = entry.number, self._expected
        if entry.position <= self._last:
            self.report.add(number, "reordered", "its stream id is before that of the previous entry")
        if number > expected:
            self.report.add(expected, "removed", counted(number - expected, "number is missing", "numbers are missing"))
        elif number < expected:
            self.report.add(max(number, 0), "reordered", f"found where {expected} should be")
        self._last = max(self._last, entry.position)
        self._expected = (number if number > 0 else expected) + 1

    def _check_signature(self, entry: SignedEntry) -> None:
        found = entry.check(self._keyring, self._namespace) if self.report.keyed else None
        if found == "ok":
            self._signed = True
            if entry.fingerprint in self._seen:  # a copied entry keeps its valid signature
                self.report.add(entry.number, "repeated", "a copy of an earlier entry")
            self._seen.add(entry.fingerprint)
        elif found == "unsigned" and not self._signed and (self._seal is None or entry.number <= self._seal.unsigned):
            self.report.unsigned = max(entry.number, 0)
        elif found is not None:
            self.report.add(max(entry.number, 0), found, f"op {entry.fields.get('op', '')[:40]!a}")
            return
        fields = entry.fields
        if fields.get("op") == TRIM and fields.get("ids", "").isdigit():
            self._trimmed = max(self._trimmed, int(fields["ids"]))

    def _close(self) -> None:
        """Compare the chain of the fed entries with their seal, and continue from the seal's chain."""
        seal = self._seal
        assert seal is not None
        covers = f"{seal.first} to {seal.last}"
        if self._expected != seal.last + 1 and not seal.broken:
            self.report.add(min(self._expected, seal.last), "removed", f"the seal covers {covers}")
        right = self._chain is None or hmac.compare_digest(self._chain.hexdigest(), seal.chain)
        if not right and self.report.number_of_problems == self._problems_before:
            self.report.add(seal.first, "changed", f"entries {covers} are not what was sealed")
        self._next += 1
        self._continue(seal.chain)

    def _continue(self, chain: str | None) -> None:
        """Start the chain of the next seal. A seal under an unknown key was reported already."""
        self._chain, self._problems_before = None, self.report.number_of_problems
        with suppress(KeyMissing):
            self._chain = start(self._keyring.secret(self._seal.key), chain) if self._seal else None
