"""Quarantine marks: since when an agent's changes are hidden. `<epoch seconds> <code>` in a hash of agents.

A mark restricts, so one that fails its check hides everything that its agent ever wrote.
"""

from __future__ import annotations

from collections.abc import Mapping

from memory_core.records.authority_codes import Authority, AuthorityCodes
from memory_core.records.times import to_redis


def mark(integrity: AuthorityCodes, namespace: str, agent: str, since: float) -> str:
    """Return the mark of an agent."""
    text = to_redis(since)
    return f"{text} {integrity.sign_authority(Authority.QUARANTINE, namespace, agent, text)}".strip()


def read(integrity: AuthorityCodes, namespace: str, marks: Mapping[bytes, bytes]) -> dict[str, float]:
    """Read all marks of a namespace: agent → since when (epoch seconds)."""
    return {name.decode(): _since(integrity, namespace, name.decode(), value) for name, value in marks.items()}


def _since(integrity: AuthorityCodes, namespace: str, agent: str, value: bytes) -> float:
    since, _, code = value.decode(errors="replace").partition(" ")
    failure = integrity.check_authority(Authority.QUARANTINE, namespace, agent, code, since)
    return 0.0 if failure else float(since)
