"""What the doctor says: findings, each with an id that scripts can rely on, how grave it is, and how to mend it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from memory_core.records.sidecar import SidecarStatus


class Severity(StrEnum):
    """How grave a finding is. With an `error` something does not work or data is at risk; a `warning` can wait."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(BaseModel):
    """One check: `where` names the namespace, sidecar or file; `remedy` is empty where nothing is to be mended."""

    id: str
    severity: Severity
    where: str = ""
    seen: str
    remedy: str = ""

    def line(self) -> str:
        """Give it as a line, and the remedy as another."""
        mark = {Severity.OK: "ok  ", Severity.WARNING: "WARN", Severity.ERROR: "FAIL"}[self.severity]
        where = f" {self.where}" if self.where else ""
        remedy = f"\n     -> {self.remedy}" if self.remedy else ""
        return f"{mark} {self.id}{where}: {self.seen}{remedy}"


class Report(BaseModel):
    """Everything that was found; process ids and addresses are there for scripts."""

    healthy: bool = True
    findings: list[Finding] = []
    redis: dict[str, Any] = {}
    sidecars: list[SidecarStatus] = []
    namespaces: list[str] = []

    def well(self, check: str, seen: str, *, where: str = "") -> None:
        """Say that something is as it should be."""
        self.findings.append(Finding(id=check, severity=Severity.OK, where=where, seen=seen))

    def fault(
        self, check: str, seen: str, remedy: str, *, where: str = "", severity: Severity = Severity.ERROR
    ) -> None:
        """Say what is not, and how to mend it."""
        assert remedy, "a fault without a remedy helps nobody"
        self.findings.append(Finding(id=check, severity=severity, where=where, seen=seen, remedy=remedy))
        self.healthy = False

    def warn(self, check: str, seen: str, remedy: str, *, where: str = "") -> None:
        """Say what could be better, and how."""
        self.fault(check, seen, remedy, where=where, severity=Severity.WARNING)

    def judge(self, check: str, seen: str, remedy: str | None, *, where: str = "") -> None:
        """Say how something is: as it should be, unless there is something to mend."""
        if remedy:
            self.fault(check, seen, remedy, where=where)
        else:
            self.well(check, seen, where=where)

    @property
    def faults(self) -> list[Finding]:
        """What is to be mended."""
        return [finding for finding in self.findings if finding.severity is not Severity.OK]

    def text(self) -> str:
        """Give a line for each finding."""
        return "\n".join(finding.line() for finding in self.findings)
