"""The doctor's report: findings with a stable id, a severity and a remedy, and what the checks share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from memory_core.crypto.keyring import Keyring
from memory_core.errors import plain_line
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store.sidecar import SidecarStatus


class Severity(StrEnum):
    """With an `error` something does not work or data is at risk; a `warning` can wait."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(BaseModel):
    """The result of one check. `where` names the namespace, sidecar or file; `remedy` is empty if all is well."""

    id: str
    severity: Severity
    where: str = ""
    seen: str
    remedy: str = ""

    def line(self) -> str:
        """Return the finding as one line, and its remedy as another. What was seen may quote records."""
        mark = {Severity.OK: "ok  ", Severity.WARNING: "WARN", Severity.ERROR: "FAIL"}[self.severity]
        where = f" {self.where}" if self.where else ""
        remedy = f"\n     -> {plain_line(self.remedy)}" if self.remedy else ""
        return plain_line(f"{mark} {self.id}{where}: {self.seen}") + remedy


class DoctorReport(BaseModel):
    """All findings, with process ids and addresses for scripts."""

    healthy: bool = True
    findings: list[Finding] = []
    redis: dict[str, Any] = {}
    sidecars: list[SidecarStatus] = []
    namespaces: list[str] = []

    def ok(self, check: str, seen: str, *, where: str = "") -> None:
        """Add a check that found no problem."""
        self.findings.append(Finding(id=check, severity=Severity.OK, where=where, seen=seen))

    def error(
        self, check: str, seen: str, remedy: str, *, where: str = "", severity: Severity = Severity.ERROR
    ) -> None:
        """Add a problem and how to fix it."""
        assert remedy, "a problem needs a remedy"
        self.findings.append(Finding(id=check, severity=severity, where=where, seen=seen, remedy=remedy))
        self.healthy = False

    def check(self, is_good: bool, check: str, seen: str, remedy: str, *, where: str = "") -> None:
        """Add a check that found no problem, or the problem and its remedy."""
        if is_good:
            self.ok(check, seen, where=where)
        else:
            self.error(check, seen, remedy, where=where)

    def warning(self, check: str, seen: str, remedy: str, *, where: str = "") -> None:
        """Add a problem that can wait."""
        self.error(check, seen, remedy, where=where, severity=Severity.WARNING)

    @property
    def faults(self) -> list[Finding]:
        """The findings that are problems."""
        return [finding for finding in self.findings if finding.severity is not Severity.OK]

    def text(self) -> str:
        """Return all findings as text."""
        return "\n".join(finding.line() for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Inspection:
    """Where the checks read, and the report that they write."""

    client: Client
    settings: Settings
    keyring: Keyring
    report: DoctorReport
