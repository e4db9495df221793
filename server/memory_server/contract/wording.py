"""Words for times and lifetimes in texts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_BY_THE_MINUTE = timedelta(days=2)


def minute(iso: str) -> str:
    """Shorten an ISO 8601 time in UTC to the minute: `2026-11-28T10:05Z`."""
    return f"{iso[:16]}Z"


def moment(iso: str) -> str:
    """Shorten a time like `minute`; the start of a day to its date."""
    return iso[:10] if iso[10:] in ("T00:00:00Z", "T00:00:00.000Z") else minute(iso)


def lifetime(expires_at: str | None) -> str:
    """Return `kept forever`, or until when; the minute only if it is near."""
    if expires_at is None:
        return "kept forever"
    near = (datetime.now(UTC) + _BY_THE_MINUTE).isoformat()
    return f"until {minute(expires_at) if expires_at < near else expires_at[:10]}"


def period(since: str | None, until: str | None) -> str:
    """Return the period that filters select, with a space before it; nothing without one."""
    named = (("since", since), ("until", until))
    return "".join(f" {name} {minute(at)}" for name, at in named if at)
