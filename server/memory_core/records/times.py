"""Times: parsed from callers, stored as epoch seconds in decimal text, shown as ISO 8601."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from datetime import UTC, datetime

from memory_core.errors import InvalidArgument, echo

NEVER = math.inf
_LONGEST = 100
_YEAR = re.compile(r"[12]\d{3}")
_LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC).timestamp()
_HINT = "use ISO 8601 (2026-05-04T10:00:00Z), epoch seconds, or a phrase such as '2 days ago'"


def parse_time(value: str | float, what: str = "time") -> float:
    """Read a time as epoch seconds: ISO 8601, a number, or an English phrase relative to now.

    Times without a zone are UTC.

    Raises:
        InvalidArgument: not a time, or outside the years 1 to 9999.
    """
    if isinstance(value, bool):
        raise InvalidArgument(f"{what} {value} is not a time", hint=_HINT)
    seconds = value if isinstance(value, int | float) else _parse_text(value.strip(), what)
    if not _EARLIEST <= seconds <= _LATEST:  # also refuses NaN, and an integer too large for a float
        raise InvalidArgument(f"{what} {echo(value)} is outside the years 1 to 9999", hint=_HINT)
    return float(seconds)


def _parse_text(text: str, what: str) -> float:
    """Read ISO 8601 before numbers: `2026` and `20260504` are dates, ten digits are epoch seconds."""
    if len(text) > _LONGEST:
        raise InvalidArgument(f"{what} {echo(text)} is not a time", hint=_HINT)
    with suppress(ValueError):
        moment = datetime.fromisoformat(f"{text}-01-01" if _YEAR.fullmatch(text) else text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    with suppress(ValueError):
        return float(text)
    return _parse_phrase(text, what)


def _parse_phrase(text: str, what: str) -> float:
    moment = None
    if text:
        import dateparser  # slow to import, and most calls do not need it

        moment = dateparser.parse(
            text, languages=["en"], settings={"TIMEZONE": "UTC", "RETURN_AS_TIMEZONE_AWARE": True}
        )
    if moment is None:
        raise InvalidArgument(f"{what} {echo(text)} is not a time", hint=_HINT)
    return moment.timestamp()


def to_redis(seconds: float) -> str:
    """Format epoch seconds for Redis: six decimals, or `inf` for never."""
    return "inf" if seconds == NEVER else f"{seconds:.6f}"


def to_iso(seconds: float | None) -> str | None:
    """Format epoch seconds as ISO 8601 in UTC; None for None and never."""
    if seconds is None or seconds == NEVER:
        return None
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")
